"""Every way out of the table, and that each tells the engine once."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import cast

import pytest

from weir_chassis.errors import NotFound
from weir_chassis.leases import LeaseLedger
from weir_chassis.testing import VirtualClock
from weir_executor.fake import FakeEngine
from weir_executor.handoff.table import HandoffTable, HeldHandoff
from weir_executor.kv_transfer.hashes import Namespaces
from weir_executor.live_requests import Listener, LiveRequest
from weir_executor.request import GenerationRequest

_LEASE_SECONDS = 30.0


class _Caller:
    """A stream that counts how often it was told that something has gone."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1


@dataclass
class _Desk:
    clock: VirtualClock = field(default_factory=VirtualClock)
    released: list[int] = field(default_factory=list)
    caller: _Caller = field(default_factory=_Caller)

    def __post_init__(self) -> None:
        self.leases = LeaseLedger(self.clock)
        self.table = HandoffTable(
            self.leases,
            Random(1),
            namespaces=Namespaces(FakeEngine().info),
            lease_seconds=_LEASE_SECONDS,
            release_held=self.released.append,
        )

    @property
    def listener(self) -> Listener:
        return cast("Listener", self.caller)

    def open(self, key: int, handle: int) -> HeldHandoff:
        request = GenerationRequest(key, [1] * 48, 5, block_hashes=[b"a" * 16, b"b" * 16, b"c" * 16])
        live = LiveRequest(request, handle, self.listener)
        live.lease = self.leases.acquire("slot", "request")
        live.lease.release()
        return self.table.open(live, 2)

    def check_all_gone(self, *keys: int) -> None:
        assert self.released == list(keys)
        assert not self.leases.counts()
        assert not self.table.holds_of(self.listener)
        assert self.caller.flushes == len(keys)


def test_a_handoff_names_the_blocks_that_are_held_and_can_be_found() -> None:
    desk = _Desk()
    handoff = desk.open(key=7, handle=1)
    assert handoff.block_hashes == [b"a" * 16, b"b" * 16]
    assert desk.table.find(handoff.handoff_id) is handoff
    assert desk.leases.counts() == {"handoff": 1}
    assert desk.open(key=8, handle=2).handoff_id != handoff.handoff_id


def test_it_is_released_by_its_name_once() -> None:
    desk = _Desk()
    handoff = desk.open(key=7, handle=1)
    for _ in range(2):
        desk.table.release(handoff.handoff_id)
    desk.check_all_gone(7)
    with pytest.raises(NotFound):
        desk.table.find(handoff.handoff_id)


def test_it_is_released_by_its_handle_or_with_all_of_its_caller() -> None:
    desk = _Desk()
    for key in (7, 8, 9):
        desk.open(key, handle=key)
    desk.table.release_of(desk.listener, 8)
    desk.table.release_of(desk.listener, 8)
    assert desk.released == [8]
    desk.table.release_all_of(desk.listener)
    desk.check_all_gone(8, 7, 9)


def test_a_handle_that_names_another_request_gives_the_first_ones_back() -> None:
    desk = _Desk()
    desk.open(key=7, handle=1)
    desk.open(key=8, handle=1)
    assert desk.released == [7]
    desk.table.release_of(desk.listener, 1)
    desk.check_all_gone(7, 8)


async def test_it_lapses_unless_somebody_reads() -> None:
    desk = _Desk()
    read, unread = desk.open(key=7, handle=1), desk.open(key=8, handle=2)
    await desk.clock.advance(_LEASE_SECONDS - 1)
    desk.table.find(read.handoff_id)
    desk.table.sweep()
    assert not desk.released
    await desk.clock.advance(2)
    desk.table.sweep()
    assert desk.released == [unread.key]
    await desk.clock.advance(_LEASE_SECONDS)
    desk.table.sweep()
    desk.check_all_gone(8, 7)
