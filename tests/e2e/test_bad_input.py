"""Bad input, at the one door and at start-up: a typed refusal or an error that names the field, the file, the limit."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from e2e.conftest import Stack
from servers import free_port
from weir.inference.v1.chat_pb2 import ChatMessage, ChatPrompt, ContentPart, ImagePart
from weir.inference.v1.sampling_pb2 import SamplingParameters, StoppingConditions
from weir.router.v1.router_pb2 import ChatRequest, GenerateRequest, TokenPrompt
from weir.router.v1.router_pb2_grpc import RouterServiceStub
from weir_chassis.channel import open_channel
from weir_chassis.errors import RevisionMismatch, TemplateFailed, WeirError, reason_name
from weir_chassis.status import from_rpc_error
from weir_client.answer import collect
from weir_client.client import Client, user
from weir_local import one_process
from weir_local.placement import Placement, find_model, plan

NAN, INFINITY = float("nan"), float("inf")


def chat(text: str = "hi", **fields: object) -> ChatRequest:
    return ChatRequest(prompt=ChatPrompt(messages=[user(text)]), **fields)  # type: ignore[arg-type]


def sampled(**parameters: object) -> ChatRequest:
    return chat(sampling=SamplingParameters(**parameters))  # type: ignore[arg-type]


def stopped(**conditions: object) -> ChatRequest:
    return chat(stopping=StoppingConditions(**conditions))  # type: ignore[arg-type]


def ids(*token_ids: int) -> GenerateRequest:
    return GenerateRequest(token_ids=TokenPrompt(token_ids=token_ids))


IMAGE = ChatMessage(role="user", content=[ContentPart(image=ImagePart(url="http://x/y.png"))])

# request, reason, and what the message says: the field, and the limit where there is one
REFUSED: list[tuple[ChatRequest | GenerateRequest, str, list[str]]] = [
    (GenerateRequest(text=""), "INVALID_ARGUMENT", ["text"]),
    (GenerateRequest(), "INVALID_ARGUMENT", ["prompt"]),
    (ids(), "INVALID_ARGUMENT", ["token_ids"]),
    (ids(5, 4_000_000), "INVALID_ARGUMENT", ["token_ids", "4096"]),
    (ids(*[5] * 3000), "PROMPT_TOO_LONG", ["3000", "2047"]),
    (GenerateRequest(text="a b " * 3000), "PROMPT_TOO_LONG", ["2048"]),
    (GenerateRequest(text="x" * (10 << 20)), "INVALID_ARGUMENT", ["text", str(4 << 20)]),
    (chat("y" * (10 << 20)), "INVALID_ARGUMENT", [str(4 << 20)]),
    (ChatRequest(), "INVALID_ARGUMENT", ["messages"]),
    (
        ChatRequest(prompt=ChatPrompt(messages=[ChatMessage(content=[ContentPart(text="x")])])),
        "INVALID_ARGUMENT",
        ["role"],
    ),
    (ChatRequest(prompt=ChatPrompt(messages=[IMAGE])), "UNSUPPORTED", ["image"]),
    (ChatRequest(prompt=ChatPrompt(messages=[user("x")] * 5000)), "INVALID_ARGUMENT", ["messages", "4096"]),
    (chat(model="nosuch"), "MODEL_NOT_FOUND", ["nosuch", "demo"]),
    (chat(model="m" * 500), "INVALID_ARGUMENT", ["model", "128"]),
    (chat(priority=1000), "INVALID_ARGUMENT", ["priority", "100"]),
    (sampled(temperature=-0.5), "INVALID_ARGUMENT", ["sampling.temperature", "100"]),
    (sampled(temperature=NAN), "INVALID_ARGUMENT", ["sampling.temperature"]),
    (sampled(top_p=0.0), "INVALID_ARGUMENT", ["sampling.top_p"]),
    (sampled(top_p=INFINITY), "INVALID_ARGUMENT", ["sampling.top_p"]),
    (sampled(min_p=1.5), "INVALID_ARGUMENT", ["sampling.min_p"]),
    (sampled(repetition_penalty=0.0), "INVALID_ARGUMENT", ["sampling.repetition_penalty"]),
    (sampled(presence_penalty=NAN), "INVALID_ARGUMENT", ["sampling.presence_penalty"]),
    (sampled(frequency_penalty=-1e6), "INVALID_ARGUMENT", ["sampling.frequency_penalty", "100"]),
    (sampled(logit_bias={5: NAN}), "INVALID_ARGUMENT", ["sampling.logit_bias"]),
    (sampled(logit_bias={9_999_999: 1.0}), "INVALID_ARGUMENT", ["sampling.logit_bias"]),
    (sampled(n=0), "INVALID_ARGUMENT", ["sampling.n", "16"]),
    (sampled(n=17), "INVALID_ARGUMENT", ["sampling.n", "16"]),
    (sampled(logprobs=21), "INVALID_ARGUMENT", ["sampling.logprobs", "20"]),
    (stopped(max_tokens=0), "INVALID_ARGUMENT", ["stopping.max_tokens"]),
    (stopped(max_tokens=4_000_000), "PROMPT_TOO_LONG", ["2048"]),
    (stopped(max_tokens=4, min_tokens=5), "INVALID_ARGUMENT", ["stopping.min_tokens"]),
    (stopped(stop=["x"] * 17), "INVALID_ARGUMENT", ["stopping.stop", "16"]),
    (stopped(stop=[""]), "INVALID_ARGUMENT", ["stopping.stop"]),
    (stopped(stop=["s" * 2000]), "INVALID_ARGUMENT", ["stopping.stop", "1024"]),
    (stopped(stop_token_ids=[9_999_999]), "INVALID_ARGUMENT", ["stopping.stop_token_ids"]),
    (stopped(stop_token_ids=list(range(65))), "INVALID_ARGUMENT", ["stopping.stop_token_ids", "64"]),
]


@pytest.mark.parametrize(("request_", "reason", "says"), REFUSED, ids=[f"{r[1]}-{'-'.join(r[2])}" for r in REFUSED])
async def test_a_bad_request_is_refused_with_its_field_and_limit(
    stack: Stack, request_: ChatRequest | GenerateRequest, reason: str, says: list[str]
) -> None:
    async with open_channel(stack.router) as channel:
        stub = RouterServiceStub(channel)
        call = stub.Chat(request_) if isinstance(request_, ChatRequest) else stub.Generate(request_)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    error = from_rpc_error(caught.value)
    assert reason_name(error.reason) == reason, error
    for part in says:
        assert part in error.message, error.message


async def test_a_refused_request_leaves_the_router_as_it_was(stack: Stack) -> None:
    async with Client(stack.router) as client:
        with pytest.raises(WeirError):
            await collect(client.chat([user("hi")], sampling=SamplingParameters(n=99)))
        assert (await collect(client.chat([user("hi")], stopping=StoppingConditions(max_tokens=4)))).usage.prompt_tokens


@asynccontextmanager
async def stack_of(model_dir: Path, revision: str | None = None) -> AsyncIterator[Client]:
    """A stack in this process; the tokenizer may say that it holds another revision than the executor."""
    plans = plan(Placement(model_dir, one_process=True, port=0), free_port)
    model = json.dumps({"demo": {"path": str(model_dir), "revision": revision}})
    plans = [replace(p, settings={**p.settings, "models": model}) if p.service == "tokenizer" else p for p in plans]
    async with one_process.started(plans, lambda *_: None), Client(plans[-1].address) as client:
        while not await client.models():  # the router has not heard yet what the executor serves
            await asyncio.sleep(0.05)
        yield client


async def test_two_services_of_different_revisions_are_refused_with_both() -> None:
    async with stack_of(find_model(None), revision="another") as client:
        with pytest.raises(RevisionMismatch) as caught:
            await collect(client.chat([user("hi")]))
    assert "another" in str(caught.value) + str(caught.value.metadata)


async def test_a_template_that_raises_is_refused_with_its_words(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    shutil.copytree(find_model(None), directory)
    _set_template(directory, "{{ raise_exception('after a user speaks the assistant') }}")
    async with stack_of(directory) as client:
        with pytest.raises(TemplateFailed, match="after a user speaks the assistant"):
            await collect(client.chat([user("a"), user("b")]))


def _truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _corrupt(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\xff" * 4096)


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def _strange_architecture(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    )


def _bad_template(directory: Path) -> None:
    _set_template(directory, "{% for")


def _set_template(directory: Path, template: str) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


BROKEN: list[tuple[str, Callable[[Path], None], list[str]]] = [
    ("executor", _truncate, ["model.safetensors"]),
    ("executor", _corrupt, ["model.safetensors"]),
    ("executor", _no_weights, ["safetensors"]),
    ("executor", _no_tokenizer, ["tokenizer.json"]),
    ("executor", _strange_architecture, ["MambaForCausalLM", "LlamaForCausalLM"]),
    ("tokenizer", _no_tokenizer, ["tokenizer.json"]),
    ("tokenizer", _bad_template, ["template"]),
    ("postprocess", _no_tokenizer, ["tokenizer.json"]),
]


@pytest.mark.parametrize(("service", "break_", "says"), BROKEN, ids=[f"{b[0]}{b[1].__name__}" for b in BROKEN])
def test_a_broken_model_stops_the_start_and_is_named(
    tmp_path: Path, service: str, break_: Callable[[Path], None], says: list[str]
) -> None:
    directory = tmp_path / "demo"
    shutil.copytree(find_model(None), directory)
    break_(directory)
    settings = (
        {"MODEL": "demo", "MODEL_DIR": str(directory)} if service == "executor" else {"MODELS": f"demo={directory}"}
    )
    done = start_service(service, settings)
    assert done.returncode == 2, done.stderr
    for part in says:
        assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("service", "settings", "says"),
    [
        ("router", {"PORT": "x"}, ["WEIR_ROUTER_PORT", "integer"]),
        ("router", {"PORT": "70000"}, ["WEIR_ROUTER_PORT", "65535"]),
        ("router", {"PROT": "1"}, ["WEIR_ROUTER_PROT", "WEIR_ROUTER_PORT"]),
        ("kvstore", {"CAPACITY_BYTES": "-1"}, ["WEIR_KVSTORE_CAPACITY_BYTES"]),
        ("executor", {"MODEL": "m", "MODEL_DIR": "/nowhere"}, ["/nowhere"]),
        ("tokenizer", {}, ["WEIR_TOKENIZER_MODELS"]),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(service: str, settings: dict[str, str], says: list[str]) -> None:
    done = start_service(service, settings)
    assert done.returncode == 2, done.stderr
    for part in says:
        assert part in done.stderr


def start_service(service: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {f"WEIR_{service}_{name}".upper(): value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", f"weir_{service}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
