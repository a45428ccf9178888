"""Names that stand for many workers: all their addresses, kept while lookups fail, until that has lasted too long."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from weir_chassis.testing import VirtualClock, settle
from weir_router.fleet.dns import DnsName, DnsNames, Lookup, system_resolver
from weir_router.fleet.membership import Place

NAME = DnsName("executors.weir", 7001)


class Bench:
    def __init__(self) -> None:
        self.clock, self.changes, self.asked = VirtualClock(), 0, list[str]()
        self.answer: Sequence[str] | None = ["10.0.0.1", "fd00::1", "10.0.0.1"]
        names = [("executor", NAME), ("tokenizer", DnsName("stuck", 1))]
        self.names = DnsNames(
            names,  # type: ignore[arg-type]
            self.resolve,
            self.clock,
            self.note,
            interval_seconds=5.0,
            keep_seconds=60.0,
        )

    def note(self) -> None:
        self.changes += 1

    async def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host == "stuck":
            await asyncio.Event().wait()
        if self.answer is None:
            raise socket.gaierror("the resolver is away")
        return self.answer

    def addresses(self) -> list[str]:
        return [place.address for place in self.names.places if place.kind == "executor"]


@asynccontextmanager
async def looking_up() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.names.run())
    await settle()
    yield bench
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_name_is_all_its_addresses_and_one_that_is_not_answered_holds_up_no_other() -> None:
    async with looking_up() as bench:
        assert bench.names.places == [Place("executor", "10.0.0.1:7001"), Place("executor", "[fd00::1]:7001")]
        bench.answer = ["10.0.0.2"]
        await bench.clock.advance(5.0)
        assert (bench.addresses(), bench.changes) == (["10.0.0.2:7001"], 2)
        await bench.clock.advance(50.0)
        assert bench.changes == 2, "the same answer is no change"
        assert bench.asked.count("stuck") == 1, "it is not asked again before it has answered"


async def test_a_failed_lookup_takes_nobody_away_until_it_has_lasted_too_long() -> None:
    async with looking_up() as bench:
        bench.answer = None
        await bench.clock.advance(55.0)
        assert len(bench.addresses()) == 2
        await bench.clock.advance(10.0)
        assert bench.addresses() == []
        bench.answer = ["10.0.0.3"]
        await bench.clock.advance(5.0)
        assert bench.addresses() == ["10.0.0.3:7001"]


def test_what_was_known_has_a_time_at_which_it_is_not_believed_any_more() -> None:
    known = Lookup(("a",), 10.0)
    assert known.after(None, 19.9, 10.0) == known
    assert known.after(None, 20.0, 10.0).addresses == ()
    assert known.after([], 11.0, 10.0) == Lookup((), 11.0), "an answer is an answer"


@pytest.mark.parametrize(("text", "host", "port"), [("dns:///a.b:7001", "a.b", 7001), ("dns:///[::1]:1", "::1", 1)])
def test_a_name_is_read(text: str, host: str, port: int) -> None:
    assert DnsName.parse(text) == DnsName(host, port)


@pytest.mark.parametrize("text", ["dns:///a", "dns:///:1", "dns:///a:0", "dns:///a:x", "dns:///a:65536", "a:1"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        DnsName.parse(text)


async def test_the_machines_own_resolver_knows_this_machine() -> None:
    with system_resolver() as resolve:
        assert "127.0.0.1" in await resolve("localhost")
        with pytest.raises(OSError, match=r"."):
            await resolve("no.such.host.invalid")
