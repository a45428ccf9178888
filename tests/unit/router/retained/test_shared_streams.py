"""Streams that outlive their router: taken over from the dead, fenced from the undead; Redis away, slow or empty."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.retained_contract import ACCEPTED, ENDING, PROMPT, Call, Place, ScriptedRuns, kept, until
from servers import RedisServer, redis_server
from unit.router.retained.shared_routers import LIMITS, SHARING, Router, held, router
from unit.router.retained.streams import delta, place, said, text_of
from weir.inference.v1.stream_pb2 import Delta
from weir_chassis.errors import Cancelled, NotFound, WorkerLost
from weir_router.keeping import Drawing
from weir_router.pipeline import Write
from weir_router.regions import Residency
from weir_router.request import ClientRequest
from weir_router.retained.redis.streams import READ_ENTRIES
from weir_router.retained.stream import Name

# A router is dead soon after it is silent; a busy machine may make it so earlier, which changes nothing here.
QUICK = replace(SHARING, lease=0.3)


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.command("FLUSHALL")
    return running


@asynccontextmanager
async def two_routers(server: RedisServer, **options: object) -> AsyncIterator[tuple[Place, Router, Router]]:
    pipeline = ScriptedRuns()
    a_router = router(server, pipeline, name="a", **options)  # type: ignore[arg-type]
    b_router = router(server, pipeline, name="b", **options)  # type: ignore[arg-type]
    async with a_router as a, b_router as b:
        yield Place(a.requests, b.requests, pipeline, lambda: held(a, b)), a, b


async def told(call: Call, server: RedisServer, entries: int) -> None:
    """Redis has so many entries of the only stream."""
    (name,) = [line for line in server.command("KEYS", "*:stream:*").split(b"\r\n") if b":stream:" in line]
    log = name.replace(b":stream:", b":log:")
    await until(lambda: server.command("LLEN", log) == b":%d\r\n" % entries)
    assert not call.task.done()


async def test_a_stream_whose_router_dies_goes_on_at_the_one_that_is_asked(server: RedisServer) -> None:
    async with two_routers(server, sharing=QUICK) as (at, a, _):
        call = at.ask(at.here, **kept())
        first = await at.pipeline.begun()
        first.say(ACCEPTED, delta(0, 0, [1, 2]), delta(1, 0, [3]))
        await call.until(2)
        await told(call, server, 3)
        await a.dies()
        resumed = at.resume(at.there, {0: place([1])})
        second = await at.pipeline.begun(2)
        assert replace(second.request, keeping=first.request.keeping) == first.request
        assert second.begun is not None
        assert second.begun.token_ids == {0: [1, 2], 1: [3]}
        assert (second.begun.drawing, second.begun.attempts) == (Drawing("as the first"), 1)
        prompt = second.begun.prompt
        assert (prompt.version, list(prompt.token_ids), prompt.tenant_salt) == (PROMPT.version, [7, 8, 9], "salt")
        second.say(ACCEPTED, delta(0, 2, [4]))
        second.finish()
        await until(resumed.task.done)
        assert said(resumed.events, {0: [1]}) == said([delta(0, 0, [1, 2, 4]), delta(1, 0, [3])])
        assert resumed.events.count(ACCEPTED) == 1
        assert resumed.events[-3:] == list(ENDING)
        await call.lose()


async def test_what_had_not_begun_begins_anew(server: RedisServer) -> None:
    async with two_routers(server, sharing=QUICK) as (at, a, _):
        call = at.ask(at.here, **kept())
        await at.pipeline.begun()
        await told(call, server, 0)
        await a.dies()
        resumed = at.resume(at.there)
        second = await at.pipeline.begun(2)
        assert second.begun is None or not second.begun.token_ids
        second.say(ACCEPTED, delta(0, 0, [1]))
        second.finish()
        assert await resumed.end() == said([delta(0, 0, [1])])
        await call.lose()


async def test_the_same_key_finds_the_stream_of_a_dead_router(server: RedisServer) -> None:
    async with two_routers(server, sharing=QUICK) as (at, a, _):
        call = at.ask(at.here, **kept(idempotency_key="k"))
        (await at.pipeline.begun()).say(ACCEPTED, delta(0, 0, [1]))
        await told(call, server, 2)
        await a.dies()
        again = at.ask(at.there, request_id="again", **kept(idempotency_key="k"))
        second = await at.pipeline.begun(2)
        second.say(delta(0, 1, [2]))
        second.finish()
        assert await again.end() == said([delta(0, 0, [1, 2])])
        await call.lose()


async def test_of_two_routers_that_are_asked_one_goes_on_and_the_other_follows(server: RedisServer) -> None:
    pipeline = ScriptedRuns()
    async with AsyncExitStack() as stack:
        a, b, c = [
            await stack.enter_async_context(router(server, pipeline, name=name, sharing=QUICK)) for name in "abc"
        ]
        at = Place(a.requests, b.requests, pipeline, lambda: held(a, b))
        call = at.ask(at.here, **kept(idempotency_key="k"))
        (await at.pipeline.begun()).say(ACCEPTED, delta(0, 0, [1]))
        await told(call, server, 2)
        await a.dies()
        calls = [at.ask(door, request_id="x", **kept(idempotency_key="k")) for door in (at.there, c.requests)]
        second = await at.pipeline.begun(2)
        second.say(delta(0, 1, [2]))
        second.finish()
        assert [await each.end() for each in calls] == [said([delta(0, 0, [1, 2])])] * 2
        assert len(at.pipeline.runs) == 2
        await call.lose()


async def test_a_router_that_was_only_silent_is_fenced_and_stops(server: RedisServer) -> None:
    async with two_routers(server, sharing=QUICK) as (at, a, _):
        call = at.ask(at.here, **kept())
        first = await at.pipeline.begun()
        first.say(ACCEPTED, delta(0, 0, [1]))
        await told(call, server, 2)
        speak = a.shared.sync
        a.shared.sync = _silent  # type: ignore[method-assign]
        resumed = at.resume(at.there)
        second = await at.pipeline.begun(2)
        first.say(delta(0, 1, [99]))  # written by one that does not know yet
        await call.until(2)
        a.shared.sync = speak  # type: ignore[method-assign]
        with pytest.raises(Cancelled, match="another router"):
            await call.end()
        await until(lambda: first.ended == "cut")
        second.say(delta(0, 1, [2]))
        second.finish()
        assert await resumed.end() == said([delta(0, 0, [1, 2])])
        # Not its own any more, but the other's.
        assert await at.resume(at.here).end() == said([delta(0, 0, [1, 2])])


async def _silent() -> None:
    pass


async def test_a_router_that_shuts_down_gives_its_streams_up_at_once(server: RedisServer) -> None:
    pipeline = ScriptedRuns()
    async with router(server, pipeline, name="b") as b:
        async with router(server, pipeline, name="a") as a:
            at = Place(a.requests, b.requests, pipeline, lambda: held(a, b))
            call = at.ask(at.here, **kept())
            (await pipeline.begun()).say(ACCEPTED, delta(0, 0, [1]))
            await call.until(1)
        with pytest.raises(Exception, match="shut down"):
            await call.end()
        resumed = at.resume(at.there)  # long before the lease would lapse
        second = await pipeline.begun(2)
        second.say(delta(0, 1, [2]))
        second.finish()
        assert await resumed.end() == said([delta(0, 0, [1, 2])])


async def test_a_request_that_was_cancelled_is_not_gone_on_with(server: RedisServer) -> None:
    async with two_routers(server, sharing=QUICK) as (at, a, _):
        call = at.ask(at.here, **kept())
        (await at.pipeline.begun()).say(ACCEPTED, delta(0, 0, [1]))
        await told(call, server, 2)
        await a.dies()
        await at.there.cancel(Name("", "r"))
        with pytest.raises(Cancelled, match="CancelRequest"):
            await at.resume(at.there).end()
        assert len(at.pipeline.runs) == 1
        await call.lose()


async def test_a_long_stream_is_followed_in_pieces(server: RedisServer) -> None:
    count = 2 * READ_ENTRIES + 10
    async with two_routers(server) as (at, _, __):
        call = at.ask(at.here, **kept())
        run = await at.pipeline.begun()
        run.say(ACCEPTED, *(delta(0, i, [i % 50]) for i in range(count)))
        run.finish()
        whole = await call.end()
        assert len(whole[0][0]) == count
        assert await at.resume(at.there).end() == whole


async def test_a_stream_that_lost_its_beginning_is_found_at_its_router_only(server: RedisServer) -> None:
    async with two_routers(server, limits=replace(LIMITS, max_stream_bytes=2000)) as (at, a, _):
        call = at.ask(at.here, **kept())
        run = await at.pipeline.begun()
        run.say(ACCEPTED)
        for first in range(100):
            run.say(delta(0, first, [1]))
            await call.until(first + 1)  # at its reader's pace
        await until(lambda: _unshared(a, "too_large") == 1)
        with pytest.raises(NotFound):
            await at.resume(at.there).end()
        with pytest.raises(NotFound, match="from tokens on"):
            await at.resume(at.here).end()
        rest = at.resume(at.here, {0: place([1] * 99)})
        run.finish()
        await until(rest.task.done)
        assert said(rest.events, {0: [1] * 99}) == said([delta(0, 0, [1] * 100)])
        await call.lose()


@pytest.mark.parametrize(("region", "shared"), [("eu", True), ("us", False), ("", False)])
async def test_what_must_stay_in_a_region_is_told_to_no_redis_elsewhere(
    server: RedisServer, region: str, shared: bool
) -> None:
    async with two_routers(server, region=region) as (at, a, _):
        call = at.ask(at.here, residency=Residency(frozenset({"eu"})), **kept())
        run = await at.pipeline.begun()
        run.say(ACCEPTED, delta(0, 0, [1]))
        await call.until(1)
        if shared:
            await told(call, server, 2)
        else:
            await until(lambda: _unshared(a, "region") == 1)
            await a.shared.sync()
            assert server.command("KEYS", "*") == b"*0\r\n"
        run.finish()
        await until(call.task.done)
        resumed = at.resume(at.here)
        await until(resumed.task.done)
        assert said(resumed.events) == said(call.events)


def _unshared(of: Router, cause: str) -> float | None:
    return of.metrics.registry.get_sample_value("weir_router_unshared_streams_total", {"cause": cause})


def _up(of: Router) -> float | None:
    return of.metrics.registry.get_sample_value("weir_router_retained_store_up")


async def test_without_redis_requests_run_and_are_found_where_they_run() -> None:
    with redis_server() as server:
        async with two_routers(server) as (at, a, _):
            shared = at.ask(at.here, request_id="before", **kept())
            before = await at.pipeline.begun()
            before.say(ACCEPTED)
            await until(lambda: bool(shared.events))
            server.kill()
            call = at.ask(at.here, **kept(idempotency_key="k"))
            run = await at.pipeline.begun(2)
            run.say(ACCEPTED, delta(0, 0, [1]))
            await call.until(1)
            with pytest.raises(WorkerLost, match="does not answer"):
                await at.resume(at.there).end()
            with pytest.raises(WorkerLost):
                await at.there.cancel(Name("", "r"))
            assert _up(a) == 0
            resumed = at.resume(at.here, {0: place([1])})
            with pytest.raises(Cancelled):
                await call.end()
            server.start()  # and empty
            await until(lambda: (_unshared(a, "gone") or 0) >= 1)
            before.finish()
            await shared.end()
            run.say(delta(0, 1, [2]))
            run.finish()
            await until(resumed.task.done)
            assert said(resumed.events, {0: [1]}) == said([delta(0, 0, [1, 2])])
            await until(lambda: _up(a) == 1)


async def test_a_redis_that_hangs_holds_nobody_up_for_long() -> None:
    with redis_server() as server:
        async with two_routers(server, sharing=replace(SHARING, timeout=0.1, lease=0.5)) as (at, _, __):
            followed = at.ask(at.here, request_id="f", **kept())
            (await at.pipeline.begun()).say(ACCEPTED)
            await until(lambda: bool(followed.events))
            reader = at.resume(at.there, request_id="f")
            await until(lambda: bool(reader.events))
            server.signal(signal.SIGSTOP)
            call = at.ask(at.here, **kept())
            run = await at.pipeline.begun(2)
            run.say(ACCEPTED, delta(0, 0, [1]))
            run.finish()
            assert await call.end() == said([delta(0, 0, [1])])
            with pytest.raises(WorkerLost, match="does not answer"):
                await reader.end()
            server.signal(signal.SIGCONT)


class Story:
    """What the model says is decided; whoever runs the request says it from where it has come to, in its own pieces."""

    def __init__(self, token_ids: list[int], random: Random) -> None:
        self.token_ids, self.random = token_ids, random
        self.allowed = 0
        self.more = asyncio.Condition()
        self.runs = 0

    async def allow(self, count: int) -> None:
        async with self.more:
            self.allowed = min(len(self.token_ids), self.allowed + count)
            self.more.notify_all()

    async def run(self, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        begun = request.keeping.begun
        self.runs += 1
        said_so_far = len(begun.token_ids.get(0, ())) if begun else 0
        request.keeping.on_prompt(PROMPT, Drawing())
        await write([ACCEPTED])
        while said_so_far < len(self.token_ids):
            first = said_so_far
            async with self.more:
                await self.more.wait_for(lambda first=first: self.allowed > first)  # type: ignore[misc]
            count = self.random.randint(1, self.allowed - said_so_far)
            await write([delta(0, said_so_far, self.token_ids[said_so_far : said_so_far + count])])
            said_so_far += count
            await asyncio.sleep(0)
        for event in ENDING:
            await write([event])


class Fleet:
    """Two routers that are alive, whoever dies; and a client that takes in what its calls bring."""

    def __init__(self, server: RedisServer, story: Story, random: Random) -> None:
        self.server, self.story, self.random = server, story, random
        self.alive: list[Router] = []
        self.had: list[int] = []
        self._stack = AsyncExitStack()
        self._call: Call | None = None
        self._num_started = 0

    async def __aenter__(self) -> Fleet:
        for _ in range(2):
            await self._start()
        self._call = self._at.ask(self.alive[0].requests, **kept())
        await until(lambda: b":stream:" in self.server.command("KEYS", "*"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lose()
        await self._stack.aclose()

    async def die(self) -> None:
        """The client notices, as its connection breaks."""
        await self.alive.pop(self.random.randrange(2)).dies()
        await self._start()
        await self.resume()

    async def resume(self) -> None:
        await self._lose()
        self._call = self._at.resume(self.random.choice(self.alive).requests, {0: place(self.had)})

    async def finish(self) -> None:
        """The client asks again as long as it is not told that this is all."""
        assert self._call is not None
        async with asyncio.timeout(60):
            while (await asyncio.gather(self._call.task, return_exceptions=True))[0] is not None:
                await self.resume()
        await self._lose()

    @property
    def _at(self) -> Place:
        return Place(self.alive[0].requests, self.alive[1].requests, ScriptedRuns(), dict)

    async def _start(self) -> None:
        self._num_started += 1
        sharing = replace(SHARING, lease=0.05, flush=0.005)
        name = f"router-{self._num_started}"
        made = router(self.server, self.story, name=name, sharing=sharing)  # type: ignore[arg-type]
        self.alive.append(await self._stack.enter_async_context(made))

    async def _lose(self) -> None:
        if self._call is not None:
            self._call.task.cancel()
            await asyncio.gather(self._call.task, return_exceptions=True)
            for event in self._call.events:
                if isinstance(event, Delta):
                    assert event.first_token_index == len(self.had)
                    assert event.text == "".join(map(text_of, event.token_ids))
                    self.had += event.token_ids
        self._call = None


@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(["say", "say", "resume", "die", "wait"]), max_size=12))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_whoever_dies_and_whoever_is_asked_the_client_has_it_once_and_whole(
    server: RedisServer, seed: int, steps: list[str]
) -> None:
    server.command("FLUSHALL")
    random = Random(seed)
    story = Story([random.randrange(50) for _ in range(40)], random)
    async with Fleet(server, story, random) as fleet:
        for step in steps:
            match step:
                case "say":
                    await story.allow(random.randint(1, 6))
                case "resume":
                    await fleet.resume()
                case "die":
                    await fleet.die()
                case "wait":
                    await asyncio.sleep(0.02)
            await asyncio.sleep(random.choice([0, 0.002, 0.01]))
        await story.allow(len(story.token_ids))
        await fleet.finish()
    assert fleet.had == story.token_ids
