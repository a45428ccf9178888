"""Adapters come and go while requests run: who is told what, and what is left in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from adapters_fixture import base_of, edit_adapter, merged_model, save_adapter
from contract.executor_contract import calling, embed, generated, prompt_of, submit, until_idle
from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.model_pb2 import ModelVersion
from weir.kvstore.v1.block_hash import HashScope, block_hashes, join_hashes, scope_root
from weir_chassis.errors import WeirError, reason_name
from weir_chassis.server import new_chassis
from weir_chassis.settings import SettingsError
from weir_chassis.status import from_rpc_error
from weir_chassis.testing import assert_no_leases, serve_in_memory, serve_on_loopback
from weir_executor.engine import Engine
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.model_files import ModelFiles
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import Sampling
from weir_executor.service import serving
from weir_executor.settings import ExecutorSettings

PLACES = {"loopback": serve_on_loopback, "memory": serve_in_memory}
FILES = ModelFiles(ModelVersion(model="tiny", revision="r1", tokenizer_hash="t1"), Sampling(), {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two adapters and, beside the folder, a third."""
    for seed, name in enumerate(("first", "second"), start=1):
        save_adapter(tmp_path / "adapters" / name, base_of("llama3"), seed=seed)
    save_adapter(tmp_path / "outside", base_of("llama3"), seed=9)
    return tmp_path / "adapters"


@asynccontextmanager
async def serve(folder: Path | None, engine: Engine, place: str = "memory", **settings: Any) -> AsyncIterator[Any]:
    told = ExecutorSettings(
        model_dir=base_of("llama3"), model="tiny", adapter_dir=folder, **{"max_adapters": 2, **settings}
    )
    chassis = new_chassis("executor")
    async with (
        serving(engine, FILES, told, chassis) as servicers,
        chassis.background,
        PLACES[place](*servicers.registrations) as channel,
    ):
        from weir.executor.v1.executor_pb2_grpc import ExecutorServiceStub

        yield ExecutorServiceStub(channel)
    assert_no_leases(chassis.leases)
    assert chassis.background.failure is None


def fake(**limits: Any) -> FakeEngine:
    return FakeEngine(FakeEngineConfig(check_integrity=True, **limits))


async def load(stub: Any, name: str, directory: str = "", **fields: Any) -> pb.Adapter:
    request = pb.LoadAdapterRequest(name=name, directory=directory or name, **fields)
    messages = [message async for message in stub.LoadAdapter(request)]
    assert [message.HasField("adapter") for message in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-2].loaded_bytes == messages[-2].total_bytes > 0
    adapter: pb.Adapter = messages[-1].adapter
    return adapter


async def unload(stub: Any, name: str) -> list[int]:
    return [message.live_requests async for message in stub.UnloadAdapter(pb.UnloadAdapterRequest(name=name))]


async def names(stub: Any) -> list[str]:
    return [adapter.name for adapter in (await stub.ListAdapters(pb.ListAdaptersRequest())).adapters]


async def refusal(call: Any) -> WeirError:
    with pytest.raises(grpc.RpcError) as refused:
        await (call if asyncio.iscoroutine(call) else anext(aiter(call)))
    return from_rpc_error(refused.value)


async def until_free(stub: Any) -> None:
    """Until a slot is: a load that is given up gives it back as soon as its reading thread has heard of it."""
    async with asyncio.timeout(10):
        while reason_name((await refusal(stub.LoadAdapter(_request("probe", "..")))).reason) == "OVERLOADED":
            await asyncio.sleep(0.001)


# ── coming and going ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", PLACES)
async def test_an_adapter_is_loaded_used_listed_and_unloaded(place: str, folder: Path) -> None:
    async with serve(folder, fake(), place) as stub:
        info = await stub.GetModelInfo(pb.GetModelInfoRequest())
        assert info.max_adapters == 2
        base = await generated(stub)
        adapter = await load(stub, "mine", "first")
        assert (adapter.name, adapter.rank, adapter.live_requests) == ("mine", 4, 0)
        by_name, by_fingerprint = [await generated(stub, adapter=named) for named in ("mine", adapter.fingerprint)]
        assert by_name == by_fingerprint != base
        assert list((await stub.ListAdapters(pb.ListAdaptersRequest())).adapters) == [adapter]
        assert await unload(stub, "mine") == [0]
        assert await names(stub) == []
        error = await refusal(unload(stub, "mine"))
        assert reason_name(error.reason) == "NOT_FOUND"


async def test_unloading_takes_nothing_new_and_waits_for_what_lives(folder: Path) -> None:
    engine = fake(step_seconds=0.005)
    async with serve(folder, engine) as stub, calling(stub) as caller:
        await load(stub, "first")
        await caller.submit(1, max_tokens=40, adapter="first")
        await caller.submit(2, max_tokens=10, adapter="first")
        await caller.until_tokens(1, 1)
        (listed,) = (await stub.ListAdapters(pb.ListAdaptersRequest())).adapters
        assert listed.live_requests == 2
        leaving = asyncio.ensure_future(unload(stub, "first"))
        async with asyncio.timeout(10):
            while await names(stub):
                await asyncio.sleep(0)
        await caller.submit(3, adapter="first")
        await caller.until_told(3)
        assert reason_name(caller.failed[3].reason) == "NOT_FOUND"
        assert reason_name((await refusal(stub.LoadAdapter(_request("first")))).reason) == "ALREADY_EXISTS"
        assert not leaving.done()
        await caller.until_told(1, 2)
        assert len(caller.tokens[1, 0]) == 40, "it lived to its end"
        counts = await leaving
        assert counts[0] == 2
        assert counts[-1] == 0
        await load(stub, "first")


async def test_unloading_goes_on_when_its_call_is_given_up(folder: Path) -> None:
    engine = fake(step_seconds=0.005)
    async with serve(folder, engine) as stub, calling(stub) as caller:
        await load(stub, "first")
        await caller.submit(1, max_tokens=20, adapter="first")
        await caller.until_tokens(1, 1)
        leaving = stub.UnloadAdapter(pb.UnloadAdapterRequest(name="first"))
        assert (await anext(aiter(leaving))).live_requests == 1
        leaving.cancel()
        assert await names(stub) == []
        await caller.until_told(1)
        async with asyncio.timeout(10):
            while engine.info.max_adapters and "first" in engine._adapters:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("place", PLACES)
async def test_cancelling_a_load_undoes_it(place: str, folder: Path) -> None:
    engine = fake()
    async with serve(folder, engine, place, max_adapters=1) as stub:
        engine.hold_loads()
        loading = stub.LoadAdapter(_request("first"))
        assert (await anext(aiter(loading))).total_bytes > 0
        assert await names(stub) == []
        assert reason_name((await refusal(stub.LoadAdapter(_request("first")))).reason) == "ALREADY_EXISTS"
        loading.cancel()
        engine.release_loads()
        await until_free(stub)
        await load(stub, "second")
        assert await names(stub) == ["second"]


async def test_slots_are_bounded(folder: Path) -> None:
    async with serve(folder, fake(max_adapters=1), max_adapters=1) as stub:
        await load(stub, "first")
        assert reason_name((await refusal(stub.LoadAdapter(_request("second")))).reason) == "OVERLOADED"
        await unload(stub, "first")
        await load(stub, "second")


async def test_embeddings_pass_through_adapters(folder: Path) -> None:
    async with serve(folder, fake()) as stub:
        info = await stub.GetModelInfo(pb.GetModelInfoRequest())
        await load(stub, "first")
        plain, adapted = [await stub.Embed(embed(info, prompt_of(20), adapter=name)) for name in ("", "first")]
        assert list(plain.embeddings[0].values) != list(adapted.embeddings[0].values)
        assert await unload(stub, "first") == [0]


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────────


def _request(name: str, directory: str = "", **fields: Any) -> pb.LoadAdapterRequest:
    return pb.LoadAdapterRequest(name=name, directory=directory or name, **fields)


async def test_bad_requests_name_what_is_wrong_and_leave_no_slot_behind(folder: Path) -> None:
    edit_adapter(folder / "second", use_dora=True)
    (folder / "empty").mkdir()
    bad = "INVALID_ARGUMENT"
    wrong = [
        (_request("", "first"), bad, "name: 0 bytes"),
        (_request("x" * 129, "first"), bad, "name: 129 bytes"),
        (_request("a b", "first"), bad, "name: must be printable"),
        (_request("0" * 32, "first"), bad, "name: must not look like a fingerprint"),
        (_request("x", "../outside"), bad, "not below the adapter folder"),
        (_request("x", str(folder.parent / "outside")), bad, "not below the adapter folder"),
        (_request("x", "nowhere"), bad, "adapter_config.json: there is no such file"),
        (_request("x", "empty"), bad, "adapter_config.json: there is no such file"),
        (_request("x", "second"), "UNSUPPORTED", "use_dora"),
        (_request("x", "first", base_revision="r2"), "REVISION_MISMATCH", "another revision"),
        (_request("x", "first", base_revision="r" * 129), bad, "base_revision: longer than 128"),
    ]
    async with serve(folder, fake()) as stub:
        for request, reason, words in wrong:
            error = await refusal(stub.LoadAdapter(request))
            assert (reason_name(error.reason), words in error.message) == (reason, True), error.message
        await load(stub, "x", "first", base_revision="r1")
        await load(stub, "y", "first")


async def test_without_a_folder_or_without_room_nothing_is_loaded(folder: Path) -> None:
    async with serve(None, fake()) as stub:
        error = await refusal(stub.LoadAdapter(_request("first")))
        assert (reason_name(error.reason), "WEIR_EXECUTOR_ADAPTER_DIR" in error.message) == ("UNSUPPORTED", True)
    async with serve(folder, fake(max_adapters=0)) as stub:
        error = await refusal(stub.LoadAdapter(_request("first")))
        assert (reason_name(error.reason), "room" in error.message) == ("UNSUPPORTED", True)


async def test_those_of_the_settings_are_there_from_the_start(folder: Path) -> None:
    async with serve(folder, fake(), adapters="a=first, b=second") as stub:
        assert await names(stub) == ["a", "b"]
    with pytest.raises(SettingsError, match=r"WEIR_EXECUTOR_ADAPTERS: a: .*nowhere"):
        async with serve(folder, fake(), adapters="a=nowhere"):
            pass


@pytest.mark.parametrize("text", ["first", "=first", "a=", "a=x,a=y", "a=1,b=2,c=3"])
def test_settings_that_make_no_sense_are_refused(folder: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"adapters|name=directory|twice"):
        ExecutorSettings.model_validate({"model_dir": folder, "model": "m", "max_adapters": 2, "adapters": text})


# ── the real engine ───────────────────────────────────────────────────────────────────────────────────────────────────


def paged(**options: Any) -> Engine:
    defaults: dict[str, Any] = {"num_blocks": 64, "num_threads": 1, "check_integrity": True, "max_adapters": 2}
    return load_engine(PagedEngineConfig(base_of("llama3"), **{**defaults, **options}))


def shared(info: pb.GetModelInfoResponse, handle: int, prompt: list[int], adapter: pb.Adapter | None) -> pb.Submit:
    """As a router sends it: the adapter by its fingerprint, which is also what the hashes are seeded with."""
    fingerprint = adapter.fingerprint if adapter else ""
    version = info.model_version
    root = scope_root(HashScope(version.model, version.revision, version.tokenizer_hash, fingerprint))
    sent = submit(info, handle, prompt, adapter=fingerprint)
    sent.block_hashes = join_hashes(block_hashes(root, prompt, info.block_size))
    return sent


async def test_the_cache_of_an_adapter_is_its_own(folder: Path) -> None:
    prompt = prompt_of(50)
    async with serve(folder, paged()) as stub, calling(stub) as caller:
        adapters = [None, await load(stub, "first"), await load(stub, "second")]
        for handle in range(6):
            await caller.send(shared(caller.info, handle, prompt, adapters[handle % 3]))
            await caller.until_told(handle)
        assert [caller.ended[handle].engine_cached_tokens for handle in range(6)] == [0, 0, 0, 48, 48, 48]
        assert len({tuple(caller.tokens[handle, 0]) for handle in range(6)}) == 3
        wrong = shared(caller.info, 7, prompt, adapters[1])
        wrong.adapter = "second"
        await caller.send(wrong)
        await caller.until_told(7)
        assert "block_hashes: not of these token_ids with this model_version, adapter" in caller.failed[7].message


async def test_a_name_that_comes_back_with_other_weights_finds_no_old_block(folder: Path) -> None:
    prompt = prompt_of(50)
    async with serve(folder, paged()) as stub, calling(stub) as caller:
        old = await load(stub, "name", "first")
        await caller.send(shared(caller.info, 1, prompt, old))
        await caller.until_told(1)
        await unload(stub, "name")
        new = await load(stub, "name", "second")
        await caller.send(shared(caller.info, 2, prompt, old))
        await caller.until_told(2)
        assert reason_name(caller.failed[2].reason) == "NOT_FOUND", "the router had the old one in mind"
        await caller.send(shared(caller.info, 3, prompt, new))
        await caller.until_told(3)
        assert caller.ended[3].engine_cached_tokens == 0
        assert caller.tokens[3, 0] != caller.tokens[1, 0]
        assert (await until_idle(stub)).live_requests == 0


async def test_an_adapter_made_for_another_base_is_refused(tmp_path: Path, folder: Path) -> None:
    other = merged_model(tmp_path / "other", base_of("llama3"), folder / "first")
    edit_adapter(folder / "second", base_model_name_or_path=str(other))
    async with serve(folder, paged()) as stub:
        error = await refusal(stub.LoadAdapter(_request("second")))
        assert reason_name(error.reason) == "REVISION_MISMATCH"
        await load(stub, "first")


async def test_loads_and_unloads_under_load(folder: Path) -> None:
    """Twenty requests with and without an adapter that comes and goes: each ends once, as it would alone or refused."""
    async with serve(folder, fake(step_seconds=0.001)) as stub, calling(stub) as caller:
        await load(stub, "first")
        wanted = {name: await generated(stub, max_tokens=30, adapter=name) for name in ("", "first")}
        for handle in range(20):
            await caller.submit(handle, max_tokens=30, adapter=("", "first")[handle % 2])
            if handle == 7:
                await caller.until_tokens(7, 1)
                leaving = asyncio.ensure_future(unload(stub, "first"))
        await caller.until_told(*range(20))
        assert (await leaving)[-1] == 0
        for handle in range(20):
            if handle in caller.failed:
                assert handle % 2
                assert reason_name(caller.failed[handle].reason) == "NOT_FOUND"
            else:
                assert caller.tokens[handle, 0] == wanted[("", "first")[handle % 2]]
        assert len(caller.ended) >= 10
