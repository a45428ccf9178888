"""What is to be shown, one step after another: each is a line of what happened, or fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc

from chaos.regions.world import World, until_known
from chaos.services import until
from contract.router_contract import Answer, collect
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.router_pb2 import GenerateRequest
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.status import from_rpc_error
from weir_chassis.tenant import tenant_metadata

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub as Stub

# Of a stream that is struck, of the rest.
_TOKENS, _FEW_TOKENS = 24, 4
_STRUCK_AT = 6
_REFUSALS = 10
_SECONDS = 60.0


async def story(world: World) -> AsyncIterator[str]:
    """Tenant "stays" may be in eu only; tenant "moves" in us too, while nobody in eu can take its requests."""
    async with open_channel(world.gateway.address) as far, open_channel(world.door.address) as near:
        gateway, door = RouterServiceStub(far), RouterServiceStub(near)
        for stub in (gateway, door):
            for tenant in ("stays", "moves"):
                assert (await _ask(stub, tenant)).receipt.region == "eu"
        yield f"both are served at home, by either way; {await _nothing_in_us(world)}"

        began = [await _begin(stub, "stays") for stub in (gateway, door)]
        await _lose_eu(world)
        ends = [await _end(task) for task, _ in began]
        assert ends == ["WORKER_LOST", "WORKER_LOST"], ends
        yield f'eu is killed under two streams of "stays": {", ".join(ends)}; {await _nothing_in_us(world)}'

        refusals = [await _refused(stub, "stays") for stub in (gateway, door) for _ in range(_REFUSALS)]
        assert all(regions == "eu" for _, regions in refusals), refusals
        assert {reason for reason, _ in refusals} == {"NO_WORKER"}, refusals
        told = f'{len(refusals)} more of "stays": NO_WORKER, regions=eu'
        yield f"{told}; {await _nothing_in_us(world)}"

        moved = await _ask(gateway, "moves")
        assert (moved.receipt.region, list(moved.receipt.routers)) == ("us", ["router:us"]), moved.receipt
        assert (await _ask(door, "moves")).receipt.region == "us"
        yield 'a request of "moves" is answered in us, by either way'

        await _restore_eu(world)
        for stub in (gateway, door):
            assert (await _ask(stub, "stays")).receipt.region == "eu"
            assert (await _ask(stub, "moves")).receipt.region == "eu"
        yield "eu is back, and both are at home again"

        wanted = await _ask(door, "moves", _TOKENS)
        task, _ = await _begin(door, "moves")
        before = await _in_us(world)
        await _lose_eu(world)
        answer = await task
        assert (answer.token_ids, answer.texts) == (wanted.token_ids, wanted.texts), "it goes on where it was"
        receipt = answer.receipt
        assert receipt.region == "us", receipt
        assert receipt.continuations >= 1, "an executor and a postprocess replica were lost"
        exact = answer.continued.exact
        yield (
            f'eu is killed under a stream of "moves" after {_STRUCK_AT} tokens: it goes on in us, exact={exact}, '
            f"{_TOKENS} tokens, equal to the undisturbed run; messages in us: {before:.0f} before, "
            f"{await _in_us(world):.0f} after"
        )


async def _ask(stub: Stub, tenant: str, tokens: int = _FEW_TOKENS) -> Answer:
    answer = await collect(_call(stub, tenant, tokens))
    answer.check_complete()
    return answer


async def _begin(stub: Stub, tenant: str) -> tuple[asyncio.Task[Answer], Answer]:
    """A stream of which the client has some tokens, and whoever reads on."""
    answer = Answer()
    task = asyncio.create_task(collect(_call(stub, tenant, _TOKENS), answer))
    await until(lambda: len(answer.token_ids.get(0, ())) >= _STRUCK_AT or task.done())
    return task, answer


async def _end(task: asyncio.Task[Answer]) -> str:
    try:
        await task
    except grpc.RpcError as error:
        return reason_name(from_rpc_error(error).reason)
    return "OK"


async def _refused(stub: Stub, tenant: str) -> tuple[str, str]:
    """Reason and regions."""
    try:
        await collect(_call(stub, tenant, _FEW_TOKENS))
    except grpc.RpcError as error:
        told: WeirError = from_rpc_error(error)
        return reason_name(told.reason), told.metadata.get("regions", "")
    return "OK", ""


def _call(stub: Stub, tenant: str, tokens: int) -> grpc.aio.UnaryStreamCall[GenerateRequest, object]:
    request = GenerateRequest(
        text="Once upon a time",
        sampling=SamplingParameters(temperature=1, seed=11),
        stopping=StoppingConditions(max_tokens=tokens, ignore_eos=True),
    )
    return stub.Generate(request, timeout=_SECONDS, metadata=tenant_metadata(tenant))  # type: ignore[return-value]


async def _lose_eu(world: World) -> None:
    world.regions["eu"].kill()
    await world.regions["eu"].end()
    await until_known(world, 1)


async def _restore_eu(world: World) -> None:
    await world.regions["eu"].start()
    await until_known(world, 2)


async def _in_us(world: World) -> float:
    return sum((await world.regions["us"].messages()).values())


async def _nothing_in_us(world: World) -> str:
    assert await _in_us(world) == 0, await world.regions["us"].messages()
    return "messages in us: 0"
