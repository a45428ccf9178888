"""What retained streams keep, wherever they are kept. Each check takes a `Place`: two doors to the same streams.

Of one router both doors are the same; of routers that share their streams they are two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from unit.router.retained.streams import delta, place, said
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.output_pb2 import FinishReason, Usage
from weir.inference.v1.routing_pb2 import RoutingOptions
from weir.inference.v1.stream_pb2 import Accepted, OutputFinished, Receipt
from weir.router.v1.retained_pb2 import RetainedRequest
from weir.router.v1.router_pb2 import GenerateRequest
from weir_chassis.errors import AlreadyExists, Cancelled, InvalidArgument, NotFound, Overloaded, WeirError, WorkerLost
from weir_router import mapping
from weir_router.delivery import Event
from weir_router.fleet.model_version import Version
from weir_router.keeping import Begun, Drawing
from weir_router.pipeline import Write
from weir_router.regions import NO_CLIENT, Residency
from weir_router.request import Caller, ClientRequest, EncodedPrompt
from weir_router.retained.cut import Places
from weir_router.retained.requests import RetainedRequests
from weir_router.retained.stream import Name

_LONG_SECONDS = 20.0
PROMPT = EncodedPrompt(Version("m", "r1", "t"), [7, 8, 9], b"", 16, tenant_salt="salt")
ACCEPTED = Accepted(request_id="r", attempt=1, model_version=ModelVersion(model="m"))
ENDING: Sequence[Event] = (
    OutputFinished(output_index=0, finish_reason=FinishReason.FINISH_REASON_STOP),
    Usage(prompt_tokens=3),
    Receipt(request_id="r"),
)


@dataclass
class ScriptedRun:
    """One request on its way: says what the test tells it to, as the pipeline would."""

    request: ClientRequest
    events: asyncio.Queue[Event | WeirError | None] = field(default_factory=asyncio.Queue)
    ended: str = ""

    @property
    def begun(self) -> Begun | None:
        return self.request.keeping.begun

    def say(self, *events: Event | WeirError | None) -> None:
        for event in events:
            self.events.put_nowait(event)

    def finish(self) -> None:
        self.say(*ENDING, None)


@dataclass
class ScriptedRuns:
    """The pipeline behind both doors."""

    prompt: EncodedPrompt = PROMPT
    numerics: str = "as the first"
    runs: list[ScriptedRun] = field(default_factory=list)

    async def run(self, request: ClientRequest, write: Write, left_seconds: float | None) -> None:
        run = ScriptedRun(request)
        self.runs.append(run)
        request.keeping.on_prompt(self.prompt, Drawing(self.numerics))
        try:
            while (event := await run.events.get()) is not None:
                if isinstance(event, WeirError):
                    raise event
                await write([event])
            run.ended = "done"
        finally:
            run.ended = run.ended or "cut"

    async def begun(self, count: int = 1) -> ScriptedRun:
        await until(lambda: len(self.runs) >= count)
        return self.runs[count - 1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_LONG_SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


@dataclass
class Call:
    """A client's call: what it has been given, and how it ended."""

    task: asyncio.Task[None]
    events: list[Event]

    async def until(self, tokens: int) -> None:
        """So many tokens of output 0 have come."""
        await until(lambda: len(said_by(self).get(0, ([], ""))[0]) >= tokens)

    async def end(self) -> dict[int, tuple[list[int], str]]:
        async with asyncio.timeout(_LONG_SECONDS):
            await self.task
        return said_by(self)

    async def lose(self) -> None:
        """As the client's going away does; it may have ended."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def said_by(call: Call) -> dict[int, tuple[list[int], str]]:
    return said(call.events)


@dataclass
class Place:
    here: RetainedRequests
    there: RetainedRequests
    pipeline: ScriptedRuns
    # Held by both doors.
    leases: Callable[[], Mapping[str, int]]

    def ask(
        self,
        door: RetainedRequests,
        body: GenerateRequest | None = None,
        *,
        request_id: str = "r",
        tenant: str = "",
        residency: Residency = NO_CLIENT,
        **routing: Any,
    ) -> Call:
        body = body or GenerateRequest(text="hello")
        body.routing.MergeFrom(RoutingOptions(**routing))
        wanted = mapping.from_generate(body, request_id, 7, Caller(residency, tenant))
        return self._call(lambda write: door.answer(body, wanted, write, None))

    def resume(self, door: RetainedRequests, wanted: Places | None = None, request_id: str = "r") -> Call:
        return self._call(lambda write: door.resume(Name("", request_id), wanted or {}, write))

    def _call(self, work: Callable[[Write], Awaitable[None]]) -> Call:
        events: list[Event] = []

        async def write(new: Sequence[Event]) -> None:
            events.extend(new)

        async def call() -> None:
            await work(write)

        task = asyncio.ensure_future(call())
        # A check may leave a call to end by itself: what it ended with is then nobody's, and asyncio's to complain of.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return Call(task, events)


Check = Callable[[Place], Awaitable[None]]


def kept(seconds: float = 60.0, **others: Any) -> dict[str, Any]:
    options = RoutingOptions()
    options.retain.FromNanoseconds(round(seconds * 1e9))
    return {"retain": options.retain, **others}


async def check_a_request_that_is_not_kept_ends_with_its_call(at: Place) -> None:
    call = at.ask(at.here)
    run = await at.pipeline.begun()
    run.say(ACCEPTED, delta(0, 0, [1]))
    await call.until(1)
    await call.lose()
    assert run.ended == "cut"
    with pytest.raises(NotFound):
        await at.resume(at.there).end()


async def check_a_kept_request_goes_on_without_its_call_and_is_resumed_exactly(at: Place) -> None:
    call = at.ask(at.here, **kept())
    run = await at.pipeline.begun()
    run.say(ACCEPTED, delta(0, 0, [1, 2]), delta(1, 0, [3]), delta(0, 2, [4]))
    await call.until(3)
    await call.lose()
    run.say(delta(0, 3, [5, 6]))
    resumed = at.resume(at.there, {0: place([1, 2]), 1: place([3])})
    run.say(delta(1, 1, [7]))
    run.finish()
    await until(resumed.task.done)
    resumed.task.result()
    whole = {0: ([1, 2, 4, 5, 6], _texts(1, 2, 4, 5, 6)), 1: ([3, 7], _texts(3, 7))}
    assert said(resumed.events, {0: [1, 2], 1: [3]}) == whole
    assert resumed.events[0] == ACCEPTED
    assert resumed.events[-3:] == list(ENDING)
    assert run.ended == "done"


def _texts(*token_ids: int) -> str:
    return delta(0, 0, token_ids).text


async def check_a_stream_that_is_over_is_read_from_its_beginning(at: Place) -> None:
    call = at.ask(at.here, **kept())
    run = await at.pipeline.begun()
    run.say(ACCEPTED, delta(0, 0, [1, 2]))
    run.finish()
    whole = await call.end()
    for door in (at.there, at.here, at.there):
        again = at.resume(door)
        assert await again.end() == whole
        assert again.events[-3:] == list(ENDING)


async def check_a_stream_that_failed_says_so_to_whoever_resumes_it(at: Place) -> None:
    call = at.ask(at.here, **kept())
    (await at.pipeline.begun()).say(ACCEPTED, delta(0, 0, [1]), WorkerLost("gone", metadata={"worker": "w"}))
    with pytest.raises(WorkerLost):
        await call.end()
    resumed = at.resume(at.there)
    with pytest.raises(WorkerLost) as lost:
        await resumed.end()
    assert lost.value.metadata == {"worker": "w"}
    assert said_by(resumed) == {0: ([1], _texts(1))}


async def check_what_was_refused_is_not_kept(at: Place) -> None:
    call = at.ask(at.here, **kept(idempotency_key="k"))
    (await at.pipeline.begun()).say(Overloaded("no room"))
    with pytest.raises(Overloaded):
        await call.end()
    with pytest.raises(NotFound):
        await at.resume(at.there).end()
    again = at.ask(at.there, **kept(idempotency_key="k"))
    run = await at.pipeline.begun(2)
    run.say(ACCEPTED)
    run.finish()
    await again.end()


async def check_a_second_resume_takes_the_stream_over(at: Place) -> None:
    first = at.ask(at.here, **kept())
    run = await at.pipeline.begun()
    run.say(ACCEPTED, delta(0, 0, [1]))
    await first.until(1)
    second = at.resume(at.there)
    with pytest.raises(Cancelled):
        await first.end()
    third = at.resume(at.here, {0: place([1])})
    with pytest.raises(Cancelled):
        await second.end()
    run.say(delta(0, 1, [2]))
    run.finish()
    await until(third.task.done)
    assert said(third.events, {0: [1]}) == {0: ([1, 2], _texts(1, 2))}


async def check_others_tenants_streams_are_not_found(at: Place) -> None:
    call = at.ask(at.here, tenant="acme", **kept())
    run = await at.pipeline.begun()
    run.say(ACCEPTED)
    with pytest.raises(NotFound):
        await at.resume(at.there).end()
    with pytest.raises(NotFound):
        await at.there.cancel(Name("", "r"))
    mine = at.ask(at.here, **kept())  # of the same id, and another tenant's
    (await at.pipeline.begun(2)).finish()
    await mine.end()
    run.finish()
    await call.end()


async def check_cancel_ends_it_for_everybody(at: Place) -> None:
    call = at.ask(at.here, **kept())
    run = await at.pipeline.begun()
    run.say(ACCEPTED, delta(0, 0, [1]))
    await call.until(1)
    await at.there.cancel(Name("", "r"))
    with pytest.raises(Cancelled, match="CancelRequest"):
        await call.end()
    await until(lambda: run.ended == "cut")
    with pytest.raises(Cancelled, match="CancelRequest"):
        await at.resume(at.there).end()
    await at.there.cancel(Name("", "r"))  # one that is over is no error
    with pytest.raises(NotFound):
        await at.here.cancel(Name("", "unknown"))


async def check_a_request_that_nobody_reads_ends_and_a_stream_that_is_over_is_forgotten(at: Place) -> None:
    call = at.ask(at.here, **kept(0.2))
    run = await at.pipeline.begun()
    run.say(ACCEPTED)
    await until(lambda: bool(call.events))
    await call.lose()
    await until(lambda: run.ended == "cut")
    over = at.ask(at.here, request_id="over", **kept(0.2))
    (await at.pipeline.begun(2)).finish()
    await over.end()
    await until(lambda: not at.leases())
    for request_id in ("r", "over"):
        await _until_not_found(at, request_id)


async def _until_not_found(at: Place, request_id: str) -> None:
    async with asyncio.timeout(_LONG_SECONDS):
        while True:
            try:
                await at.resume(at.there, request_id=request_id).end()
            except NotFound:
                return
            except Cancelled:
                pass  # its end is still there
            await asyncio.sleep(0.05)


async def check_a_request_that_is_read_goes_on_however_long(at: Place) -> None:
    call = at.ask(at.here, **kept(0.1))
    run = await at.pipeline.begun()
    run.say(ACCEPTED)
    await until(lambda: bool(call.events))
    await call.lose()
    resumed = at.resume(at.there)
    await until(lambda: bool(resumed.events))
    await asyncio.sleep(1.0)  # many times what it is kept without a reader
    assert not run.ended
    run.finish()
    await resumed.end()


async def check_the_same_key_with_the_same_request_reads_the_same_stream(at: Place) -> None:
    first = at.ask(at.here, request_id="first", **kept(idempotency_key="k"))
    run = await at.pipeline.begun()
    run.say(ACCEPTED, delta(0, 0, [1]))
    await first.until(1)
    second = at.ask(at.there, request_id="second", **kept(30.0, idempotency_key="k"))
    await second.until(1)
    run.say(delta(0, 1, [2]))
    run.finish()
    assert await first.end() == await second.end() == {0: ([1, 2], _texts(1, 2))}
    third = at.ask(at.there, request_id="third", **kept(idempotency_key="k"))
    assert await third.end() == {0: ([1, 2], _texts(1, 2))}
    assert third.events[0] == ACCEPTED
    assert len(at.pipeline.runs) == 1


async def check_the_same_key_with_another_request_is_refused(at: Place) -> None:
    call = at.ask(at.here, **kept(idempotency_key="k"))
    run = await at.pipeline.begun()
    run.say(ACCEPTED)
    await until(lambda: bool(call.events))
    with pytest.raises(AlreadyExists) as refused:
        await at.ask(at.there, GenerateRequest(text="other"), request_id="x", **kept(idempotency_key="k")).end()
    assert refused.value.metadata["field"] == "routing.idempotency_key"
    others = at.ask(at.there, request_id="x", tenant="acme", **kept(idempotency_key="k"))
    (await at.pipeline.begun(2)).finish()
    await others.end()
    run.finish()
    await call.end()


async def check_of_first_requests_that_race_one_runs(at: Place) -> None:
    doors = [at.here, at.there] * 3
    calls = [at.ask(door, request_id=f"r{i}", **kept(idempotency_key="k")) for i, door in enumerate(doors)]
    run = await at.pipeline.begun()
    run.say(ACCEPTED, delta(0, 0, [1, 2, 3]))
    run.finish()
    assert [await call.end() for call in calls] == [{0: ([1, 2, 3], _texts(1, 2, 3))}] * 6
    assert len(at.pipeline.runs) == 1


async def check_a_key_whose_request_failed_and_may_be_tried_again_begins_anew(at: Place) -> None:
    call = at.ask(at.here, **kept(idempotency_key="k"))
    (await at.pipeline.begun()).say(ACCEPTED, WorkerLost("gone"))
    with pytest.raises(WorkerLost):
        await call.end()
    again = at.ask(at.there, **kept(idempotency_key="k"))
    run = await at.pipeline.begun(2)
    run.say(ACCEPTED, delta(0, 0, [5]))
    run.finish()
    assert await again.end() == {0: ([5], _texts(5))}


async def check_a_request_id_that_is_kept_is_not_used_twice(at: Place) -> None:
    call = at.ask(at.here, **kept())
    run = await at.pipeline.begun()
    with pytest.raises(AlreadyExists) as refused:
        await at.ask(at.there, **kept()).end()
    assert refused.value.metadata["field"] == "weir-request-id"
    run.finish()
    await call.end()


async def check_more_than_the_routers_limit_is_refused(at: Place) -> None:
    with pytest.raises(InvalidArgument, match=r"routing\.retain"):
        await at.ask(at.here, **kept(1e6)).end()
    assert not at.pipeline.runs


def recompose(record: RetainedRequest) -> ClientRequest:
    return mapping.from_generate(record.generate, record.request_id, record.seed, Caller(NO_CLIENT, record.tenant))


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
