"""The service as a whole: its threads, its budget, its metrics, its start."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from unit.tokenizer.conftest import until
from unit.tokenizer.model_directories import fixture_template, metaspace_json, write_model
from weir.inference.v1 import chat_pb2
from weir.tokenizer.v1 import tokenizer_pb2 as pb
from weir.tokenizer.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from weir_chassis.errors import reason_name
from weir_chassis.server import Chassis, new_chassis
from weir_chassis.settings import SettingsError
from weir_chassis.status import from_rpc_error
from weir_chassis.testing import VirtualClock, assert_no_leases, serve_in_memory
from weir_tokenizer.model import TextModel
from weir_tokenizer.service import build
from weir_tokenizer.settings import TokenizerSettings

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@asynccontextmanager
async def serve(directory: Path, chassis: Chassis | None = None, **settings: Any) -> AsyncIterator[Any]:
    chassis = chassis or new_chassis("tokenizer")
    checked = TokenizerSettings.model_validate({"models": {"m": directory}, **settings})
    async with build(checked, chassis) as servicers, serve_in_memory(*servicers.registrations) as channel:
        assert list(servicers.models) == ["m"]
        yield TokenizerServiceStub(channel)
    assert_no_leases(chassis.leases)


def chat(text: str = "hi", **fields: Any) -> pb.ApplyChatTemplateRequest:
    message = chat_pb2.ChatMessage(role="user", content=[chat_pb2.ContentPart(text=text)])
    return pb.ApplyChatTemplateRequest(prompt=chat_pb2.ChatPrompt(messages=[message]), **fields)


async def reason_of(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return reason_name(from_rpc_error(caught.value).reason)


async def test_a_template_that_never_ends_fails_and_leaves_the_loop_alone(tmp_path: Path) -> None:
    async with serve(write_model(tmp_path, template=ENDLESS), render_seconds=0.2) as stub:
        turns = 0
        call = asyncio.ensure_future(stub.ApplyChatTemplate(chat()))
        while not call.done():
            await asyncio.sleep(0.005)
            turns += 1
        assert await reason_of(call) == "TEMPLATE_FAILED"
        assert turns > 5


async def test_the_callers_deadline_ends_a_rendering_too(tmp_path: Path) -> None:
    chassis = new_chassis("tokenizer")
    async with serve(write_model(tmp_path, template=ENDLESS), chassis, render_seconds=60.0) as stub:
        assert await reason_of(stub.ApplyChatTemplate(chat(), timeout=0.1)) == "DEADLINE_EXCEEDED"
        # Far sooner than the minute that the template may take.
        await until(lambda: not chassis.leases.live())


async def test_too_much_at_once_is_refused_with_a_time_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    encode = TextModel.encode

    def slow(self: TextModel, *args: Any, **options: Any) -> Any:
        assert gate.wait(10)
        return encode(self, *args, **options)

    monkeypatch.setattr(TextModel, "encode", slow)
    async with serve(write_model(tmp_path), max_pending=2, threads=1) as stub:
        request = pb.TokenizeRequest(texts=["x"])
        held = [asyncio.ensure_future(stub.Tokenize(request)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Tokenize(request)
        error = from_rpc_error(caught.value)
        assert reason_name(error.reason) == "OVERLOADED"
        assert "RetryInfo" in str(error.status)  # type: ignore[attr-defined]  # it is remote
        assert (await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest())).tokenizers
        gate.set()
        assert all([(await call).prompts for call in held])


async def test_a_rendering_is_bounded_like_a_text(tmp_path: Path) -> None:
    template = "{% for i in range(100) %}{{ messages[0].content }}{% endfor %}"
    async with serve(write_model(tmp_path, template=template), max_text_bytes=1000) as stub:
        assert await reason_of(stub.ApplyChatTemplate(chat("x" * 11))) == "TEMPLATE_FAILED"
        assert (await stub.ApplyChatTemplate(chat("x" * 10, render_only=True))).text == "x" * 1000


async def test_a_template_that_walks_parts_gets_parts(tmp_path: Path) -> None:
    async with serve(write_model(tmp_path, template=fixture_template("vision_parts"))) as stub:
        text = (await stub.ApplyChatTemplate(chat("look", render_only=True))).text
    assert text == "<|im_start|>User: look<end_of_utterance>\nAssistant:"


async def test_the_special_tokens_of_a_chat_are_the_templates(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}"
    directory = write_model(tmp_path, template=template, tokenizer_json=metaspace_json())
    async with serve(directory) as stub:
        chat_ids = (await stub.ApplyChatTemplate(chat("weir"))).prompt.token_ids
        text_ids = (await stub.Tokenize(pb.TokenizeRequest(texts=["weir"]))).prompts[0].token_ids
        response = await stub.Detokenize(pb.DetokenizeRequest(sequences=[pb.TokenIds(token_ids=chat_ids[:2])]))
    # One begins the sequence, written by the template or added to a text, and never two.
    assert chat_ids[0] == text_ids[0]
    assert chat_ids[1] != chat_ids[0]
    assert response.texts[0]


async def test_dates_come_from_the_clock_in_utc(tmp_path: Path) -> None:
    chassis = new_chassis("tokenizer")
    object.__setattr__(chassis, "clock", VirtualClock(epoch=1_700_000_000.0))
    async with serve(write_model(tmp_path, template="{{ strftime_now('%d %b %Y %H:%M') }}"), chassis) as stub:
        assert (await stub.ApplyChatTemplate(chat(render_only=True))).text == "14 Nov 2023 22:13"


async def test_what_is_counted(tmp_path: Path) -> None:
    chassis = new_chassis("tokenizer")
    async with serve(write_model(tmp_path, template="{{ messages[0].content }}"), chassis) as stub:
        for _ in range(2):
            response = await stub.ApplyChatTemplate(chat("weir"))
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for metric in chassis.metrics.registry.collect()
            for sample in metric.samples
        }
    assert samples["weir_tokenizer_cache_events_total", "hit"] == 1
    assert samples["weir_tokenizer_cache_events_total", "miss"] == 1
    assert samples["weir_tokenizer_cache_bytes",] > 0
    assert samples["weir_tokenizer_tokens_total",] == 2 * len(response.prompt.token_ids)
    assert samples["weir_tokenizer_render_seconds_count",] == 2
    assert samples["weir_tokenizer_encode_seconds_count",] == 2


async def test_a_model_that_cannot_be_served_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="WEIR_TOKENIZER_MODELS: m: "):
        async with serve(tmp_path / "nowhere"):
            pytest.fail("must not serve")


def start(models: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weir_tokenizer"],
        env={**os.environ, "WEIR_TOKENIZER_MODELS": models, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_process_exits_with_2_and_names_every_bad_file(tmp_path: Path) -> None:
    syntax = write_model(tmp_path / "syntax", template="{% if %}")
    corrupt = write_model(tmp_path / "corrupt")
    (corrupt / "tokenizer.json").write_text('{"version": ')
    empty = tmp_path / "empty"
    empty.mkdir()
    result = start(json.dumps({"a": str(syntax), "b": str(corrupt), "c": str(empty)}))
    assert result.returncode == 2
    for name in (syntax / "tokenizer_config.json", corrupt / "tokenizer.json", empty / "tokenizer.json"):
        assert str(name) in result.stderr
    assert "Traceback" not in result.stderr


def test_the_process_exits_with_2_for_a_bad_setting() -> None:
    result = start("no-path-here")
    assert result.returncode == 2
    assert "WEIR_TOKENIZER_MODELS" in result.stderr


def test_the_service_needs_no_torch_and_no_other_service() -> None:
    program = (
        "import sys, weir_tokenizer.__main__\n"
        "banned = ('torch', 'transformers', 'weir_router', 'weir_executor', 'weir_kvstore', 'weir_postprocess')\n"
        "sys.exit(', '.join(name for name in banned if name in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
