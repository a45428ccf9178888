"""Processes that serve by TensorRT-LLM, over a package of its name that is a fake: its engine dies under a stream.

All else is real: what imports it, probes it and watches it, the process that ends with it, and the router that goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from chaos.services import DEMO_MODEL, Service, until_async
from contract.router_contract import Answer, collect
from fakes.trtllm.package import install
from servers import free_ports
from weir.inference.v1.routing_pb2 import CONTINUATION_MODE_BEST_EFFORT
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.router_pb2 import GenerateRequest
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import reason_name
from weir_chassis.status import from_rpc_error

if TYPE_CHECKING:
    from weir.router.v1.router_pb2_grpc import RouterServiceAsyncStub

_TOKENS = 60
_SECONDS = 60.0
_EXECUTOR = {"ENGINE": "trtllm", "MODEL": "demo", "MODEL_DIR": str(DEMO_MODEL), "NUM_BLOCKS": "512"}
# Whoever stands still here does so because the test says so, and is not to be left for that.
_ROUTER = {
    "NO_PROGRESS_SECONDS": "60",
    "CONTINUATION_WAIT_SECONDS": "1",
    "RECONNECT_MAX_SECONDS": "0.3",
    "LOAD_INTERVAL_SECONDS": "0.1",
}


@dataclass
class Fleet:
    first: Service
    second: Service
    router: Service
    stub: RouterServiceAsyncStub
    faults: Path

    def tell(self, executor: Service, fault: str) -> None:
        """In one piece, whenever it looks."""
        told = self.faults / "told"
        told.write_text(fault)
        told.rename(self.faults / str(executor.port))

    async def until_known(self, executors: int) -> None:
        async def known() -> bool:
            return (await self.router.metrics()).get('weir_router_healthy_workers{kind="executor"}', 0) == executors

        await until_async(known)


@pytest.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """Four processes serve, and the router knows of a second executor that is not there yet."""
    for name, value in install(tmp_path / "site", tmp_path / "faults").items():
        monkeypatch.setenv(name, value)
    ports = iter(free_ports(10))
    async with AsyncExitStack() as stack:

        def service(name: str, **settings: str) -> Service:
            made = Service(name, next(ports), next(ports), settings, tmp_path / f"{name}-{len(settings)}.log")
            stack.callback(made.end)
            return made

        models = {"MODELS": f"demo={DEMO_MODEL}"}
        tokenizer, postprocess = service("tokenizer", **models), service("postprocess", **models)
        first, second = service("executor", **_EXECUTOR), service("executor", **_EXECUTOR, WEIGHT="1")
        addresses = {
            "TOKENIZERS": tokenizer.address,
            "POSTPROCESSORS": postprocess.address,
            "EXECUTORS": f"{first.address},{second.address}",
        }
        router = service("router", **_ROUTER, **addresses)
        serving = (tokenizer, postprocess, first, router)
        for each in serving:
            each.start()
        for each in serving:
            await each.until_serving()
        channel = await stack.enter_async_context(open_channel(router.address))
        fleet = Fleet(first, second, router, RouterServiceStub(channel), tmp_path / "faults")
        await fleet.until_known(1)
        yield fleet


def _request() -> GenerateRequest:
    request = GenerateRequest(
        text="Once upon a time there was a little fox",
        sampling=SamplingParameters(temperature=0),
        stopping=StoppingConditions(max_tokens=_TOKENS, ignore_eos=True),
    )
    request.routing.continuation = CONTINUATION_MODE_BEST_EFFORT
    return request


async def test_an_engine_that_dies_under_a_stream_ends_its_process_and_not_the_stream(fleet: Fleet) -> None:
    wanted = await collect(fleet.stub.Generate(_request(), timeout=_SECONDS))
    assert wanted.receipt.worker == fleet.first.address
    answer, has_begun = Answer(), False
    async for event in fleet.stub.Generate(_request(), timeout=_SECONDS):
        answer.add(event)
        if event.HasField("delta") and not has_begun:
            has_begun = True
            fleet.tell(fleet.first, "hang")
            fleet.second.start()
            await fleet.second.until_serving()
            await fleet.until_known(2)
            fleet.tell(fleet.first, "die")
    assert (answer.token_ids, answer.texts, answer.finished) == (wanted.token_ids, wanted.texts, wanted.finished)
    assert answer.usage.completion_tokens == _TOKENS
    assert answer.receipt.workers == [fleet.first.address, fleet.second.address]
    # Nobody knows whether the real one's kernels would have drawn the same in another batch.
    assert (answer.continued.reason, answer.continued.exact) == ("WORKER_LOST", False)
    assert await fleet.first.wait() == 1, "whoever supervises it starts another"
    assert "an illegal memory access" in fleet.first.log.read_text()
    await _what_must_go_on_exactly_ends(fleet)


async def _what_must_go_on_exactly_ends(fleet: Fleet) -> None:
    """With what may be asked again. Then whoever is started again answers."""
    await fleet.until_known(1)
    request, has_begun = _request(), False
    request.routing.ClearField("continuation")
    with pytest.raises(grpc.RpcError) as caught:
        async for event in fleet.stub.Generate(request, timeout=_SECONDS):
            if event.HasField("delta") and not has_begun:
                has_begun = True
                fleet.tell(fleet.second, "die")
    error = from_rpc_error(caught.value)
    assert (reason_name(error.reason), error.row.retryable) == ("WORKER_LOST", True)
    assert await fleet.second.wait() == 1
    fleet.tell(fleet.first, "resume")
    fleet.first.start()
    await fleet.first.until_serving()
    await fleet.until_known(1)
    assert (await collect(fleet.stub.Generate(request, timeout=_SECONDS))).receipt.worker == fleet.first.address
