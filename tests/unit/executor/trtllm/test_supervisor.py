"""Whether it lives: by a flag, by its own word, and by silence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.trtllm.llm import library
from unit.executor.trtllm.making import until
from weir_executor.trtllm import supervisor as module
from weir_executor.trtllm.probe import probe
from weir_executor.trtllm.supervisor import Supervisor


class Executor:
    _fatal_error: Any = None
    is_down = False

    def is_shutdown(self) -> bool:
        return self.is_down


class Watched:
    """An LLM as far as it is watched. `silent`: it does not answer until that is set."""

    def __init__(self) -> None:
        self._executor: Any = Executor()
        self.answer: bool | Exception = True
        self.silent = threading.Event()
        self.silent.set()
        self.asked = 0

    def _check_health(self) -> bool:
        self.asked += 1
        self.silent.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.005)
    monkeypatch.setattr(module, "_FLAG_SECONDS", 0.005)


Watch = Callable[..., tuple[Supervisor, list[Exception]]]


@pytest.fixture
def watch() -> Iterator[Watch]:
    class Asked:
        _check_health = None
        generate_async = library().LLM.generate_async

    watching: list[Supervisor] = []

    def begin(llm: Any, *, asks: bool = True) -> tuple[Supervisor, list[Exception]]:
        told: list[Exception] = []
        can = probe(library(LLM=Asked) if asks else library(), allow_unknown=False)
        watching.append(Supervisor(llm, can, told.append))
        watching[-1].start()
        return watching[-1], told

    yield begin
    for each in watching:
        each.stop()


@pytest.mark.parametrize("error", [RuntimeError("an illegal memory access"), "an illegal memory access"])
def test_a_flag_is_seen_without_a_question(watch: Watch, error: Any) -> None:
    llm = Watched()
    _, told = watch(llm, asks=False)
    llm._executor._fatal_error = error
    until(lambda: told)
    assert "illegal memory" in str(told[0])
    assert llm.asked == 0


def test_one_that_shuts_itself_down_is_dead(watch: Watch) -> None:
    """All that versions say in which there is no flag."""
    llm = Watched()
    _, told = watch(llm, asks=False)
    llm._executor.is_down = True
    until(lambda: told)
    assert "shut itself down" in str(told[0])


def test_what_has_neither_flag_nor_executor_is_not_dead_for_that(watch: Watch) -> None:
    llm = Watched()
    llm._executor = None
    supervisor, told = watch(llm)
    until(lambda: llm.asked > 5)
    supervisor.stop()
    assert not told


@pytest.mark.parametrize("answer", [False, OSError("no such socket")])
def test_what_it_says_of_itself_is_believed(watch: Watch, answer: Any) -> None:
    llm = Watched()
    _, told = watch(llm)
    llm.answer = answer
    until(lambda: told)
    assert told[0] is answer or "not well" in str(told[0])


def test_silence_is_as_bad_as_a_no_and_holds_up_nobody(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.05)
    llm = Watched()
    llm.silent.clear()
    _, told = watch(llm)
    until(lambda: told)
    llm.silent.set()
    assert "has not said" in str(told[0])


def test_it_is_told_once_and_not_after_the_end(watch: Watch) -> None:
    llm, stopped = Watched(), Watched()
    first, told = watch(llm)
    second, nothing = watch(stopped)
    second.stop()
    for each in (llm, stopped):
        each._executor._fatal_error, each.answer = RuntimeError("both"), False
    until(lambda: told)
    for thread in (*first._threads, *second._threads):
        thread.join(30)
        assert not thread.is_alive()
    assert (len(told), nothing) == (1, [])
