"""A process keeps to the processors that it is told, and all of its threads with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from weir_chassis.processors import stay_on_processors
from weir_chassis.settings import ServiceSettings, SettingsError

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell")

_CODE = """
import os, threading
from unit.chassis.test_processors import KeptSettings
from weir_chassis.processors import stay_on_processors
stay_on_processors(KeptSettings())
seen = []
thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
thread.start(), thread.join()
assert seen == [os.sched_getaffinity(0)]
print(*sorted(seen[0]))
"""


class KeptSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_KEPT_")


def told(processors: str) -> str:
    """By a process of its own: the one that tests stays where it is."""
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "WEIR_KEPT_PROCESSORS": processors}
    done = subprocess.run(
        [sys.executable, "-c", _CODE], capture_output=True, text=True, check=True, timeout=60, env=variables
    )
    return done.stdout.strip()


def test_threads_that_are_started_later_stay_there_too() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    assert told(str(allowed[-1])) == str(allowed[-1])
    assert told(",".join(map(str, allowed))) == " ".join(map(str, allowed))
    if allowed == list(range(allowed[0], allowed[-1] + 1)):
        assert told(f"{allowed[0]}-{allowed[-1]}") == " ".join(map(str, allowed))


def test_nothing_said_is_nothing_done() -> None:
    before = os.sched_getaffinity(0)
    stay_on_processors(KeptSettings())
    assert os.sched_getaffinity(0) == before


def test_processors_that_it_may_not_use_are_named_with_those_that_it_may() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(SettingsError, match=r"WEIR_KEPT_PROCESSORS='9998-9999'.*may use \d") as refused:
        stay_on_processors(KeptSettings(processors="9998-9999"))
    assert str(refused.value).endswith(",".join(map(str, sorted(before))))
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("text", ["one", "1,", "1-", "-1", "1--2", "0 1", "12345"])
def test_what_is_no_list_is_refused_as_a_setting(text: str) -> None:
    with pytest.raises(ValidationError, match="processors"):
        KeptSettings(processors=text)
