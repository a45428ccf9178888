"""The contract, kept by the real service: over a real connection and in memory, by calls and by one stream of asks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import pytest

from contract import encode_contract, tokenizer_contract
from contract.tokenizer_contract import SERVED, Check
from unit.tokenizer.model_directories import fixture_template, write_model
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from weir_chassis.server import Chassis, new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_tokenizer.service import build
from weir_tokenizer.settings import TokenizerSettings

if TYPE_CHECKING:
    from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub as Stub

DOORS: dict[str, Callable[[Stub], AbstractAsyncContextManager[Stub]]] = {
    "calls": nullcontext,
    "stream": encode_contract.door,
}
PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
REFUSING = "{% if messages[-1].role == 'refused' %}{{ raise_exception('no such role') }}{% endif %}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSettings:
    root = tmp_path_factory.mktemp("models")
    chat = write_model(root / "chat", template=REFUSING + fixture_template("chatml"), context=64)
    plain = write_model(root / "plain", context=64)
    models = {SERVED.chat: chat, SERVED.plain: plain}
    return TokenizerSettings.model_validate({"models": models, "max_text_bytes": 1 << 17})


@asynccontextmanager
async def serve(place: str, chassis: Chassis, settings: TokenizerSettings) -> AsyncIterator[Stub]:
    async with (
        build(settings, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        yield TokenizerServiceStub(channel)


@pytest.mark.parametrize("check", tokenizer_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("place", PLACES)
async def test_contract(place: str, door: str, check: Check, settings: TokenizerSettings) -> None:
    chassis = new_chassis("tokenizer")
    async with serve(place, chassis, settings) as stub, DOORS[door](stub) as by_door:
        await check(by_door)
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None


@pytest.mark.parametrize("check", encode_contract.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("place", PLACES)
async def test_encode(place: str, check: encode_contract.Check, settings: TokenizerSettings) -> None:
    chassis = new_chassis("tokenizer")
    async with serve(place, chassis, settings) as stub, encode_contract.asking(stub) as asker:
        await check(asker, stub)
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None
