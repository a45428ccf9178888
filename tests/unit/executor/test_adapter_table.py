"""Names and slots of adapters: whatever comes and goes in whatever order, nothing is unloaded under anybody."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from weir_chassis.errors import AlreadyExists, InvalidArgument, NotFound, Overloaded, Unsupported
from weir_executor.adapters.table import AdapterTable, HeldAdapter, check_name
from weir_executor.engine import AdapterInfo

_NAMES = ("a", "b", "c", "d")
_SLOTS = 3


def ready(table: AdapterTable, name: str, fingerprint: str = "0" * 32) -> HeldAdapter:
    held = table.reserve(name)
    held.info = AdapterInfo(name, 4, fingerprint, 100)
    return held


def test_an_adapter_is_found_by_its_name_first_and_else_by_its_fingerprint() -> None:
    table = AdapterTable(3, lambda _: None)
    first, second = ready(table, "a", "f" * 32), ready(table, "b", "e" * 32)
    assert (table.find("a"), table.find("e" * 32)) == (first, second)
    first.retire()
    with pytest.raises(NotFound):
        table.find("f" * 32)


def test_one_that_is_loading_is_not_found_and_has_its_slot() -> None:
    table = AdapterTable(1, lambda _: None)
    loading = table.reserve("a")
    with pytest.raises(NotFound):
        table.find("a")
    with pytest.raises(AlreadyExists):
        table.reserve("a")
    with pytest.raises(Overloaded):
        table.reserve("b")
    table.forget(loading)
    ready(table, "b")


def test_without_slots_there_is_nothing_to_wait_for() -> None:
    with pytest.raises(Unsupported):
        AdapterTable(0, lambda _: None).reserve("a")


def test_retiring_twice_is_retiring_once() -> None:
    unloaded: list[str] = []
    table = AdapterTable(1, unloaded.append)
    held = ready(table, "a")
    held.retire()
    held.retire()
    assert unloaded == ["a"]


@pytest.mark.parametrize("name", ["", "x" * 129, "é" * 65, "a b", "a\n", "\u200b", "0123456789abcdef" * 2])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        check_name(name)


def test_names_that_are_fine() -> None:
    for name in ("support-v2", "org/adapter:1", "é" * 64, "0123456789abcdef"):
        check_name(name)


class Adapters(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.unloaded: list[str] = []
        self.table = AdapterTable(_SLOTS, self.unloaded.append)
        self.loading: list[HeldAdapter] = []
        self.loaded: list[HeldAdapter] = []
        self.requests: list[HeldAdapter] = []

    @rule(name=st.sampled_from(_NAMES))
    def begin_load(self, name: str) -> None:
        try:
            self.loading.append(self.table.reserve(name))
        except (AlreadyExists, Overloaded):
            taken = {held.name for held in (*self.loading, *self.loaded, *self.requests)}
            assert name in taken or len(taken) == _SLOTS

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), succeeds=st.booleans())
    def end_load(self, data: st.DataObject, succeeds: bool) -> None:
        held = self.loading.pop(data.draw(st.integers(0, len(self.loading) - 1)))
        if not succeeds:
            self.table.forget(held)
            return
        held.info = AdapterInfo(held.name, 4, held.name * 32, 100)
        self.loaded.append(held)

    @rule(name=st.sampled_from(_NAMES))
    def begin_request(self, name: str) -> None:
        known = [held for held in self.loaded if held.name == name]
        try:
            held = self.table.find(name)
        except NotFound:
            assert not known
            return
        assert known == [held]
        held.hold()
        self.requests.append(held)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end_request(self, data: st.DataObject) -> None:
        self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1))).release()

    @precondition(lambda self: self.loaded)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        self.loaded.pop(data.draw(st.integers(0, len(self.loaded) - 1))).retire()

    @invariant()
    def nobody_uses_what_is_unloaded_and_what_nobody_uses_is_gone(self) -> None:
        kept = {held.name for held in (*self.loading, *self.loaded, *self.requests)}
        assert set(self.table._by_name) == kept
        assert len(kept) <= _SLOTS
        assert sorted(held.name for held in self.table) == sorted(held.name for held in self.loaded)
        for held in self.loaded:
            assert held.live == self.requests.count(held)


TestAdapters = Adapters.TestCase
TestAdapters.settings = settings(max_examples=60, stateful_step_count=40)
