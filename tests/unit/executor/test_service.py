"""The service as a whole: it starts with a model directory, or says what is wrong with it and exits with 2."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.executor_contract import calling, connect
from models_fixture import EOS, tiny_model
from unit.executor.guide_tokens import save_tokenizer, text_of
from weir.executor.v1 import executor_pb2 as pb
from weir.inference.v1.guide_pb2 import Choice, Guide
from weir.inference.v1.output_pb2 import FinishReason
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.inference.v1.watermark_pb2 import Watermark
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_chassis.server import new_chassis, serve
from weir_chassis.settings import SettingsError
from weir_chassis.stopping import Stop
from weir_chassis.testing import assert_no_leases, serve_in_memory
from weir_executor.service import SERVICE, SERVICE_NAME, build
from weir_executor.settings import ExecutorSettings


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model("llama3"), copy)
    (copy / "tokenizer.json").write_text("{}")
    return copy


def settings(directory: Path, **fields: Any) -> ExecutorSettings:
    small = {"num_blocks": 64, "num_threads": 1, "max_num_seqs": 4, "max_batched_tokens": 64}
    return ExecutorSettings(model_dir=directory, model="tiny", **{**small, **fields})


@pytest.mark.parametrize("engine", ["paged", "fake"])
async def test_it_serves_a_model_directory(directory: Path, engine: str) -> None:
    chassis = new_chassis("executor")
    async with (
        build(settings(directory, engine=engine), chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
    ):
        assert servicers.models == ["tiny"]
        stub = connect(channel)
        async with calling(stub) as caller:
            assert caller.info.engine == engine
            assert (caller.info.vocab_size, list(caller.info.eos_token_ids)) == (320, [EOS])
            await caller.submit(1)
            await caller.until_told(1)
            assert len(caller.tokens[1, 0]) == 8
    assert_no_leases(chassis.leases)


async def test_outputs_follow_guides(directory: Path) -> None:
    save_tokenizer(directory)
    chassis = new_chassis("executor")
    async with (
        build(settings(directory), chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
        calling(connect(channel)) as caller,
    ):
        assert caller.info.guides
        stopping = {"ignore_eos": False}
        for handle, guide in enumerate([Guide(regex="[ab]{3}(yes|no)"), Guide(choice=Choice(options=["ab", "é"]))]):
            sampling = SamplingParameters(seed=handle, guide=guide)
            await caller.submit(handle, sampling=sampling, stopping=stopping, max_tokens=20)
        await caller.submit(2, sampling=SamplingParameters(guide=Guide(regex="(")), stopping=stopping)
        await caller.submit(3, sampling=SamplingParameters(guide=Guide(ebnf='root ::= "a" root')), stopping=stopping)
        await caller.submit(4, sampling=SamplingParameters(guide=Guide(regex="")), stopping=stopping)
        await caller.submit(5, sampling=SamplingParameters(guide=Guide(regex="x{60}")), max_tokens=50)
        await caller.abort(5)
        await caller.until_told(*range(6))
        assert re.fullmatch("[ab]{3}(yes|no)", text_of(caller.tokens[0, 0]))
        assert text_of(caller.tokens[1, 0]) in {"ab", "é"}
        assert caller.finished[0, 0].finish_reason == FinishReason.FINISH_REASON_STOP
        assert caller.finished[0, 0].guide_complete
        assert all(isinstance(error, InvalidArgument) for error in caller.failed.values())
        fields = {handle: str(error).split(":")[0] for handle, error in caller.failed.items()}
        assert fields == {2: "sampling.guide.regex", 3: "sampling.guide.ebnf", 4: "sampling.guide.regex"}
        assert len(caller.tokens[5, 0]) < 50
        # A guide that is known by now needs no task of its own.
        await caller.submit(9, sampling=SamplingParameters(guide=Guide(regex="[ab]{3}(yes|no)")), stopping=stopping)
        await caller.until_told(9)
        assert re.fullmatch("[ab]{3}(yes|no)", text_of(caller.tokens[9, 0]))
    assert_no_leases(chassis.leases)


@pytest.mark.parametrize("engine", ["paged", "fake"])
async def test_an_executor_without_guides_says_so(directory: Path, engine: str) -> None:
    """The one has a tokenizer whose tokens have no bytes, the other cannot."""
    chassis = new_chassis("executor")
    async with (
        build(settings(directory, engine=engine), chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
        calling(connect(channel)) as caller,
    ):
        assert not caller.info.guides
        await caller.submit(1, sampling=SamplingParameters(guide=Guide(regex="a")))
        await caller.until_told(1)
        assert isinstance(caller.failed[1], Unsupported)


async def test_marked_outputs_are_detected_for_their_tenant_alone(directory: Path) -> None:
    (directory / "key").write_text("a secret of some length\n")
    chassis = new_chassis("executor")
    async with (
        build(settings(directory, watermark_key_file=directory / "key"), chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
        calling(stub := connect(channel)) as caller,
    ):
        assert caller.info.watermarks
        sampling = SamplingParameters(seed=1, temperature=4, watermark=Watermark(bias=8))
        await caller.submit(1, sampling=sampling, max_tokens=200, tenant="acme")
        await caller.until_told(1)
        tokens = caller.tokens[1, 0]
        asked = pb.DetectWatermarkRequest(model_version=caller.info.model_version, tenant="acme", token_ids=tokens)
        found = await stub.DetectWatermark(asked)
        assert found.p_value < 1e-6 < found.z_score
        assert found.green_tokens <= found.scored_tokens <= 199
        asked.tenant = "other"
        assert (await stub.DetectWatermark(asked)).p_value > 1e-3
        for field, wrong in {
            "token_ids": pb.DetectWatermarkRequest(token_ids=[1]),
            "watermark.bias": pb.DetectWatermarkRequest(token_ids=[1, 2], watermark=Watermark(bias=-1)),
        }.items():
            wrong.model_version.CopyFrom(caller.info.model_version)
            with pytest.raises(grpc.RpcError, match=field):
                await stub.DetectWatermark(wrong)


async def test_without_a_key_there_are_no_watermarks(directory: Path) -> None:
    chassis = new_chassis("executor")
    async with (
        build(settings(directory, engine="fake"), chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
        calling(stub := connect(channel)) as caller,
    ):
        assert not caller.info.watermarks
        await caller.submit(1, sampling=SamplingParameters(watermark=Watermark()))
        await caller.until_told(1)
        assert isinstance(caller.failed[1], Unsupported)
        asked = pb.DetectWatermarkRequest(model_version=caller.info.model_version, token_ids=[1, 2])
        with pytest.raises(grpc.RpcError, match="no watermark key"):
            await stub.DetectWatermark(asked)


async def test_a_key_that_cannot_be_read_is_named(directory: Path) -> None:
    with pytest.raises(SettingsError, match="WEIR_EXECUTOR_WATERMARK_KEY_FILE"):
        async with build(settings(directory, watermark_key_file=directory / "nothing"), new_chassis("executor")):
            pass


async def test_its_metrics_show_load_and_ends(directory: Path) -> None:
    chassis = new_chassis("executor")
    async with (
        build(settings(directory, engine="fake"), chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
        calling(connect(channel)) as caller,
    ):
        await caller.submit(1)
        await caller.until_told(1)
        value = chassis.metrics.registry.get_sample_value
        assert value("weir_executor_generated_tokens_total") == 8
        assert value("weir_executor_requests_ended_total", {"reason": "OK"}) == 1
        assert value("weir_executor_prompt_tokens_total", {"origin": "computed"}) == 10
        assert value("weir_executor_leases", {"kind": "stream"}) == 1
        assert value("weir_executor_waiting_requests") is not None


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"no weights at all"), "model.safetensors"),
        (lambda d: os.truncate(d / "model.safetensors", 5000), "model.safetensors"),
        (lambda d: (d / "config.json").write_text("{}"), "config.json|architecture"),
        (shutil.rmtree, "config.json is missing"),
    ],
    ids=["config", "tokenizer", "weights", "corrupt", "cut", "empty_config", "nothing"],
)
async def test_what_is_wrong_with_a_model_is_named(directory: Path, harm: Any, words: str) -> None:
    harm(directory)
    with pytest.raises(SettingsError, match=words) as caught:
        async with build(settings(directory), new_chassis("executor")):
            pass
    assert "WEIR_EXECUTOR_MODEL_DIR" in str(caught.value)


async def test_a_device_that_is_not_there_is_named(directory: Path) -> None:
    with pytest.raises(SettingsError, match="device 'nonsense'"):
        async with build(settings(directory, device="nonsense"), new_chassis("executor")):
            pass


async def test_it_starts_and_stops_as_a_server(directory: Path) -> None:
    stop = Stop()
    asyncio.get_running_loop().call_later(0.2, stop.request)
    assert await serve(SERVICE, settings(directory, engine="fake"), stop=stop) == 0


def test_the_process_exits_with_2_and_one_line() -> None:
    environment = {**os.environ, "WEIR_EXECUTOR_MODEL_DIR": "/nowhere", "WEIR_EXECUTOR_MODEL": "tiny"}
    done = subprocess.run(
        [sys.executable, "-m", "weir_executor"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "executor: WEIR_EXECUTOR_MODEL_DIR='/nowhere': config.json is missing"


def test_streams_that_live_as_long_as_a_channel_get_no_default_deadline() -> None:
    streams = {
        f"/{SERVICE_NAME}/{method.name}"
        for method in pb.DESCRIPTOR.services_by_name["ExecutorService"].methods
        if method.server_streaming
    }
    assert streams == SERVICE.unbounded
