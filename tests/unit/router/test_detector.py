"""DetectWatermark through a real router and fake workers. `suite` checks at the end that everything is given back."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from fakes import bytes_model
from fakes.executor import FakeExecutor
from fakes.suite import suite
from weir.inference.v1.watermark_pb2 import Watermark
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import Internal, Overloaded, Unsupported, WeirError, reason_name
from weir_chassis.status import from_rpc_error
from weir_chassis.tenant import TENANT_KEY


async def refusal(call: Any) -> WeirError:
    with pytest.raises(grpc.RpcError) as refused:
        await call
    return from_rpc_error(refused.value)


async def test_what_the_executor_is_given_and_what_it_found() -> None:
    asked = pb.DetectWatermarkRequest(text="hé", watermark=Watermark(green_fraction=0.5))
    async with suite() as running:
        found = await running.router.DetectWatermark(asked, metadata=[(TENANT_KEY, "acme")])
        (given,) = running.executor.detections
        assert list(given.token_ids) == list("hé".encode())
        assert (given.model_version, given.tenant, given.watermark) == (bytes_model.VERSION, "acme", asked.watermark)
        assert (found.scored_tokens, found.green_tokens, found.z_score, found.p_value) == (2, 1, 0.5, 0.25)


@pytest.mark.parametrize("error", [Internal("a bug"), Overloaded("full")])
async def test_another_executor_is_asked_once(error: WeirError) -> None:
    executors = [FakeExecutor(), FakeExecutor()]
    executors[0].refusal = error
    async with suite(executors=executors) as running:
        for _ in range(2):  # whichever of the two has its turn
            assert (await running.router.DetectWatermark(pb.DetectWatermarkRequest(text="hello"))).scored_tokens == 4
        executors[1].refusal = error
        refused = await refusal(running.router.DetectWatermark(pb.DetectWatermarkRequest(text="hello")))
        assert refused.reason == error.reason


async def test_an_executor_without_a_key_says_so() -> None:
    async with suite() as running:
        running.executor.refusal = Unsupported("no key")
        refused = await refusal(running.router.DetectWatermark(pb.DetectWatermarkRequest(text="hello")))
        assert reason_name(refused.reason) == "UNSUPPORTED"
        assert len(running.executor.detections) == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (pb.DetectWatermarkRequest(), "text: must not be empty"),
        (pb.DetectWatermarkRequest(text="x"), "text: has no two tokens"),
        (pb.DetectWatermarkRequest(text="xy", model="m" * 129), "model: must be 0 to 128 bytes"),
        (pb.DetectWatermarkRequest(text="xy", watermark=Watermark(green_fraction=0.0)), "watermark.green_fraction"),
    ],
)
async def test_a_bad_request_names_its_field(asked: pb.DetectWatermarkRequest, words: str) -> None:
    async with suite() as running:
        error = await refusal(running.router.DetectWatermark(asked))
        assert reason_name(error.reason) == "INVALID_ARGUMENT"
        assert words in error.message
        assert not running.executor.detections


async def test_a_deadline_ends_it() -> None:
    async with suite() as running:
        running.executor.running.clear()
        error = await refusal(running.router.DetectWatermark(pb.DetectWatermarkRequest(text="hello"), timeout=0.1))
        assert reason_name(error.reason) == "DEADLINE_EXCEEDED"
