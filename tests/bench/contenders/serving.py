"""The child's side of a contender: stays loaded, answers one workload per line. Needs the standard library alone.

    ◀ {"workload": "mixed", "salt": 3}          ▶ @{"seconds": 10.3}

What a library prints by itself has no `@` before it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

from bench.workload import WORKLOADS, Work

Answer = Callable[[Work], list[list[int]]]
THREADS = os.cpu_count() or 1
KV_CACHE_GIB = 2  # of every contender: more than the largest workload's 32 x 600 tokens need
MARK = "@"


def serve(answer: Answer, rest_seconds: float = 0.0) -> None:
    """Until standard input ends. Warms up before it says that it is ready.

    Rests after each answer, so that what it has put off until it is idle is done in its own turn.
    """
    for salt in (-1, -2):  # the second time takes the paths of a process that has answered before
        timed(answer, WORKLOADS["warm_up"](salt))
    _say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = timed(answer, WORKLOADS[asked["workload"]](asked["salt"]))
        time.sleep(rest_seconds)
        _say({"seconds": seconds})


def timed(answer: Answer, work: Work) -> float:
    """Seconds that the answer took. All of the work must have been done."""
    began = time.perf_counter()
    outputs = answer(work)
    seconds = time.perf_counter() - began
    lengths = [len(output) for output in outputs]
    assert lengths == work.lengths, (lengths, work.lengths)
    return seconds


def _say(message: dict[str, object]) -> None:
    print(MARK + json.dumps(message), flush=True)
