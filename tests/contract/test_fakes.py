"""The fakes keep the contracts of what they stand for, so that a test before them means something.

Left out, by name, is what no router sees: blocks kept between requests, the log of KV events, chance, and the refusal
of what a router has refused already.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from contract import encode_contract, executor_contract, postprocess_contract
from contract.tokenizer_contract import SERVED
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import Fakes
from fakes.tokenizer import FakeTokenizer
from weir.inference.v1.model_pb2 import ModelVersion
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from weir_chassis.inmemory import InMemoryChannel

BEYOND_THE_FAKE = {
    "check_a_beginning_that_was_embedded_is_found_again_but_by_no_mean",
    "check_what_was_embedded_under_one_salt_is_not_found_under_another",
    "check_bad_embeds_name_field_and_limit",
    "check_a_prefix_is_found_again",
    "check_an_unset_seed_is_drawn",
    "check_bad_requests_name_field_and_limit",
    "check_bad_handoffs_name_field_and_limit",
    "check_handed_off_blocks_are_read_in_order_and_again",
    "check_kv_events_begin_with_a_reset_and_go_on",
    "check_kv_events_resume_where_they_stopped",
    "check_kv_events_of_another_epoch_are_reset",
    "check_speculation_changes_no_token_and_is_counted",
}
EXECUTOR_CHECKS = [check for check in executor_contract.CHECKS if check.__name__ not in BEYOND_THE_FAKE]


@asynccontextmanager
async def served(fakes: Fakes) -> AsyncIterator[grpc.aio.Channel]:
    (worker,) = fakes.workers.values()
    await worker.server.start()
    channel = InMemoryChannel(worker.server)
    try:
        yield channel
    finally:
        await channel.close()
        await worker.server.stop(None)


def test_what_is_left_out_exists() -> None:
    assert {check.__name__ for check in executor_contract.CHECKS} >= BEYOND_THE_FAKE


@pytest.mark.parametrize("check", EXECUTOR_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_executor(check: executor_contract.Check) -> None:
    executor = FakeExecutor()
    async with served(Fakes.make([executor], [], [])) as channel:
        await check(executor_contract.connect(channel))
    assert executor.live == 0


@pytest.mark.parametrize("check", postprocess_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_postprocess(check: postprocess_contract.Check) -> None:
    postprocess = FakePostprocess()
    async with served(Fakes.make([], [], [postprocess])) as channel:
        await check(postprocess_contract.connect(channel))
    assert postprocess.live == 0


@pytest.mark.parametrize("check", encode_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_tokenizer(check: encode_contract.Check) -> None:
    version = ModelVersion(model=SERVED.chat, revision="r1", tokenizer_hash="0" * 32)
    tokenizer = FakeTokenizer(version)
    async with served(Fakes.make([], [tokenizer], [])) as channel:
        stub = TokenizerServiceStub(channel)
        async with encode_contract.asking(stub) as asker:
            await check(asker, stub)
