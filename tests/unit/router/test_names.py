"""What names come to through a whole router: selection, and what happens where a name comes to nothing."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import pytest

from contract.router_contract import collect
from fakes.executor import FakeExecutor
from fakes.postprocess import FakePostprocess
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.stream_pb2 import Receipt
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import InvalidArgument, PromptTooLong
from weir_chassis.status import from_rpc_error

SELECTION = """
[selection]
default = "small"
code = "coder"
long_context = "long"
long_context_tokens = 60
"""
PYTHON = "Write a Python function."


def models(tmp_path: Path, config: str, *names: str) -> AbstractAsyncContextManager[Suite]:
    file = tmp_path / "routing.toml"
    file.write_text(config)
    versions = [ModelVersion(model=name, revision="r1", tokenizer_hash="0" * 32) for name in names]
    return suite(
        executors=[FakeExecutor(version) for version in versions],
        tokenizers=[FakeTokenizer(version) for version in versions],
        postprocessors=[FakePostprocess(*names)],
        config_file=file,
    )


async def ask(running: Suite, text: str, model: str = "") -> Receipt:
    receipt: Receipt = (await collect(running.router.Generate(pb.GenerateRequest(text=text, model=model)))).receipt
    return receipt


def chosen(receipt: Receipt) -> tuple[str, str]:
    return receipt.model_version.model, receipt.selected_by


@pytest.mark.parametrize("name", ["", "auto"])
async def test_a_model_that_is_left_open_is_selected(tmp_path: Path, name: str) -> None:
    async with models(tmp_path, SELECTION, "small", "coder", "long") as running:
        assert chosen(await ask(running, PYTHON, name)) == ("coder", "code")
        assert chosen(await ask(running, "xyzzy", name)) == ("small", "default")
        assert chosen(await ask(running, "x" * 59, name)) == ("small", "default")
        assert chosen(await ask(running, "x" * 60, name)) == ("long", "long_context")
        assert chosen(await ask(running, PYTHON, "small")) == ("small", "")


async def test_a_prompt_that_is_too_long_for_its_model_is_long(tmp_path: Path) -> None:
    async with models(tmp_path, SELECTION.replace("60", "200"), "small", "coder", "long") as running:
        running.fakes.tokenizers[0].max_prompt_tokens = 100
        assert chosen(await ask(running, "x" * 400)) == ("long", "long_context")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(running, "x" * 150)
        assert isinstance(from_rpc_error(caught.value), PromptTooLong)


async def test_where_nobody_serves_what_is_selected_the_default_answers(tmp_path: Path) -> None:
    async with models(tmp_path, SELECTION, "small", "coder") as running:
        assert chosen(await ask(running, "x" * 60)) == ("small", "default")
        running.fakes.workers["executor-1"].drain()
        await running.until_serving(4)
        assert chosen(await ask(running, PYTHON)) == ("small", "default")


async def test_without_a_selection_auto_is_the_only_model(tmp_path: Path) -> None:
    async with models(tmp_path, "", "small") as running:
        assert chosen(await ask(running, PYTHON, "auto")) == ("small", "")
    async with models(tmp_path, "", "small", "coder") as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(running, PYTHON, "auto")
        assert isinstance(from_rpc_error(caught.value), InvalidArgument)


async def test_a_model_or_an_alias_that_is_called_auto_is_just_that(tmp_path: Path) -> None:
    async with models(tmp_path, SELECTION, "small", "coder", "auto") as running:
        assert chosen(await ask(running, PYTHON, "auto")) == ("auto", "")
    alias = SELECTION + '[[aliases.auto.targets]]\nmodel = "small"\n'
    async with models(tmp_path, alias, "small", "coder") as running:
        receipt = await ask(running, PYTHON, "auto")
        assert (chosen(receipt), receipt.alias) == (("small", ""), "auto")


async def test_a_kind_may_be_an_aliases_business(tmp_path: Path) -> None:
    config = SELECTION.replace('"coder"', '"code"') + '[[aliases.code.targets]]\nmodel = "coder"\narm = "only"\n'
    async with models(tmp_path, config, "small", "coder") as running:
        receipt = await ask(running, PYTHON)
        assert (chosen(receipt), receipt.alias, receipt.arm) == (("coder", "code"), "code", "only")
