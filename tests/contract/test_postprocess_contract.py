"""The contract, kept by the real service, over a real connection and in memory; and by the fake, as far as it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from contract import postprocess_contract
from contract.postprocess_contract import CHECKS, MODEL, Check, write_tokenizer
from fakes.postprocess import FakePostprocess
from weir.postprocess.v1.postprocess_pb2_grpc import add_PostprocessServiceServicer_to_server
from weir_chassis.server import Chassis, Registration, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback, settle
from weir_postprocess.service import SERVICE_NAME, build
from weir_postprocess.settings import PostprocessSettings

if TYPE_CHECKING:
    from weir.postprocess.v1.postprocess_pb2_grpc import PostprocessServiceAsyncStub as Stub

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
# The fake trusts its callers, has no text for its special token, and holds a whole delta back where a token would do.
FAKE_LEAVES_OUT = {
    postprocess_contract.check_a_batch_whose_columns_do_not_fit_ends_the_stream,
    postprocess_contract.check_a_closed_request_says_nothing_more,
    postprocess_contract.check_a_stop_string_across_messages,
    postprocess_contract.check_a_stop_token_is_counted_without_text,
    postprocess_contract.check_logprobs_have_the_tokens_bytes,
    postprocess_contract.check_special_tokens_are_left_out_unless_wanted,
    postprocess_contract.check_wrong_requests_fail_alone,
}


def name_of(check: Check) -> str:
    return check.__name__.removeprefix("check_")


@asynccontextmanager
async def serve(place: str, chassis: Chassis, directory: Path) -> AsyncIterator[Stub]:
    settings = PostprocessSettings(models={MODEL: write_tokenizer(directory)})
    async with (
        build(settings, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield postprocess_contract.connect(channel)


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@pytest.mark.parametrize("place", PLACES)
async def test_contract(place: str, check: Check, tmp_path: Path) -> None:
    chassis = new_chassis("postprocess")
    async with serve(place, chassis, tmp_path) as stub:
        await check(stub)
    await settle()
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None


@pytest.mark.parametrize("check", [check for check in CHECKS if check not in FAKE_LEAVES_OUT], ids=name_of)
async def test_contract_of_the_fake(check: Check) -> None:
    fake = Registration(add_PostprocessServiceServicer_to_server, FakePostprocess(), SERVICE_NAME)
    async with serve_in_memory(fake) as channel:
        await check(postprocess_contract.connect(channel))
