"""`weir chat` as a person and as a script use it: turns, pipes, a terminal, Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from e2e.conftest import Stack, json_lines, until_idle

_SECONDS = 30.0


def start(stack: Stack, *arguments: str, **streams: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"WEIR_STATE_DIR": str(stack.state), "TERM": "xterm"}
    return subprocess.Popen([sys.executable, "-m", "weir_client.cli", *arguments], env=environment, **streams)  # type: ignore[call-overload,no-any-return]  # only the streams


def read_until(terminal: int, words: Sequence[bytes]) -> bytes:
    """What the terminal shows up to the last of these, which come in this order."""
    shown, seen, deadline = b"", 0, time.monotonic() + _SECONDS
    for word in words:
        while word not in shown[seen:]:
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 4096)
        seen = shown.index(word, seen) + len(word)
    return shown


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(10)
    finally:
        process.kill()


def piped(stack: Stack, *arguments: str) -> tuple[str, str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(stack, "chat", "--max-tokens", "8", "--temperature", "0", *arguments, **pipes)
    out, err = process.communicate(b"Hello\nAnd what is a weir?\n", timeout=_SECONDS)
    assert (process.returncode, b"Traceback" in err) == (0, False)
    assert b"\x1b" not in out + err, "colours are for terminals"
    return out.decode(), err.decode()


def test_piped_lines_are_the_turns_of_one_conversation_in_either_form(stack: Stack) -> None:
    _, err = piped(stack)
    as_text = [int(count) for count in re.findall(r"(\d+) prompt", err)]
    out, _ = piped(stack, "--json")
    as_json = [line["usage"]["prompt_tokens"] for line in json_lines(out) if "usage" in line]  # type: ignore[index]
    assert len(as_text) == 2
    assert as_json == as_text, "the second turn is asked after the first answer"


def test_ctrl_c_at_the_prompt_ends_a_conversation(stack: Stack) -> None:
    ours, theirs = pty.openpty()
    process = start(stack, "chat", "--max-tokens", "8", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        shown = read_until(ours, [b"> "])
        os.write(ours, b"Hello\n")
        shown += read_until(ours, [b"TTFT", b"> "])
        assert b"\x1b[36m" in shown, "a terminal is shown colours"
        # The prompt is there a moment before Python waits for a line; a signal in between is not seen before that line.
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert ended(process) == 0
    finally:
        os.close(ours)


def interrupted(stack: Stack) -> tuple[int, bytes]:
    """What a command ends with, and says, that gets a signal in the middle of an answer of eight outputs."""
    arguments = ["generate", "Once upon a time", "-n", "8", "--max-tokens", "1500", "--temperature", "3", "--json"]
    process = start(stack, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    while b'"delta"' not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)  # reads on: whoever writes to a full pipe hears no signal
    return process.returncode, said


async def test_ctrl_c_in_mid_answer_ends_the_request_everywhere(stack: Stack) -> None:
    # On a busy machine an answer may be over before the signal comes; it is not, five times in a row.
    tries = (interrupted(stack) for _ in range(5))
    status, said = next(((status, said) for status, said in tries if status), (0, b""))
    assert status == 130
    assert b"Traceback" not in said
    await until_idle(stack.addresses("executor"))
