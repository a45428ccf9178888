"""Links are opened, left and closed until they are those of the members."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from weir.fleet.v1.instance_pb2 import Instance
from weir_chassis.background import Background
from weir_chassis.errors import WorkerLost
from weir_chassis.inmemory import InMemoryServer, connector
from weir_chassis.testing import VirtualClock, settle
from weir_router.fleet.link import LinkContext
from weir_router.fleet.links import Links, found
from weir_router.fleet.membership import Member, Place
from weir_router.fleet.views import Traits, WorkerState
from weir_router.settings import RouterSettings
from weir_router.streams.tokenizer_stream import TokenizerStream

E1, E2, T1, P1 = (
    Place("executor", "memory:a"),
    Place("executor", "memory:b"),
    Place("tokenizer", "memory:a"),
    Place("postprocess", "memory:a"),
)
STATIC = Member("static")


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Links, Background]]:
    """To servers that do not answer, so that every link is down unless a test says otherwise."""
    connect = connector({name: InMemoryServer() for name in "ab"})
    context = LinkContext(RouterSettings(), connect, VirtualClock(), Random(0).random, lambda: None)
    async with Background() as background:
        links = Links(context, background)
        yield links, background
        await links.close()
    assert background.failure is None


async def test_links_are_those_of_the_members_and_run() -> None:
    async with opened() as (links, background):
        assert links.match(dict.fromkeys([E1, T1, P1], STATIC))
        assert [link.place for link in links] == [E1, T1, P1]
        assert len(background) == 3
        assert not links.match(dict.fromkeys([E1, T1, P1], STATIC)), "nothing is another"
        first = links.executors["memory:a"]
        assert links.match(dict.fromkeys([E1, E2], STATIC))
        assert [link.place for link in links] == [E1, E2]
        assert links.executors["memory:a"] is first
        await settle()
        assert len(background) == 2, "those that were closed have ended"


async def test_one_that_has_left_stays_while_something_lives_on_it() -> None:
    async with opened() as (links, _):
        links.match({E1: STATIC})
        link = links.executors["memory:a"]
        reservation = link.outstanding.reserve(5)
        assert links.match({})
        assert (link.leaving, list(links)) == (True, [link])
        assert not links.match({}), "it still finishes"
        assert links.match({E1: STATIC})
        assert not link.leaving, "it has come back"
        links.match({})
        reservation.release()
        assert links.match({})
        assert list(links) == []
        with pytest.raises(WorkerLost, match="memory:a has left the fleet"):
            found(links.executors, "memory:a")


async def test_one_that_has_left_drains_whatever_it_says_of_itself() -> None:
    async with opened() as (links, _):
        links.match({T1: STATIC})
        link = links.tokenizers["memory:a"]
        link.state = WorkerState.SERVING
        assert link.current_state() is WorkerState.DOWN, "nothing can be asked of it yet"
        with link.connected(TokenizerStream("memory:a", VirtualClock(), timeout_seconds=30.0)):
            assert link.current_state() is WorkerState.SERVING
            link.leaving = True
            assert (link.current_state(), link.view().state) == (WorkerState.DRAINING, WorkerState.DRAINING)
            link.state = WorkerState.DOWN
            assert link.current_state() is WorkerState.DOWN


async def test_what_the_same_process_announces_later_counts_and_what_another_does_not() -> None:
    async with opened() as (links, _):
        links.match({E1: STATIC})
        link = links.executors["memory:a"]
        link.instance = Instance(instance_id="i")
        assert links.match({E1: Member("static", Instance(instance_id="i", region="eu"))})
        assert link.traits == Traits(instance_id="i", region="eu")
        assert not links.match({E1: Member("static", Instance(instance_id="another", region="us"))})
        assert link.traits.region == "eu"


async def test_one_process_at_two_addresses_is_given_requests_at_the_first_that_answers() -> None:
    async with opened() as (links, _):
        members = dict.fromkeys([E1, E2, T1], STATIC)
        links.match(members)
        first, second = links.executors["memory:a"], links.executors["memory:b"]
        for link in links:
            link.instance, link.state = Instance(instance_id="same"), WorkerState.SERVING
        assert links.match(members)
        assert [link.is_twin for link in links] == [False, True, False], "of a kind"
        assert not links.match(members)
        assert links.answering() == {E1, E2, T1}
        first.state = WorkerState.DOWN
        assert links.match(members)
        assert not second.is_twin
        first.state, first.instance = WorkerState.SERVING, Instance(instance_id="another")
        links.match(members)
        assert not first.is_twin
        assert not second.is_twin
