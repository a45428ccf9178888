"""A model that is loaded while everything runs: on a model host, through the router, by the command line."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from e2e.conftest import run_weir
from servers import free_port
from weir_chassis.child_process import ChildProcess
from weir_client.answer import collect
from weir_client.client import Client
from weir_local.placement import find_model

_SECONDS = 90.0


async def test_a_model_is_loaded_served_and_unloaded_while_all_runs(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(find_model(None), folder / "demo")
    models = f"first={folder / 'demo'},second={folder / 'demo'}"
    host, tokenizer, postprocess, router = (f"127.0.0.1:{free_port()}" for _ in range(4))
    executor = {"WEIR_EXECUTOR_KV_CACHE_BYTES": str(64 << 20), "WEIR_EXECUTOR_NUM_THREADS": "1"}
    plans = [
        ("model_host", host, {"MODEL_FOLDER": str(folder), "LOG_DIR": str(tmp_path)}, "weir_executor.host"),
        ("tokenizer", tokenizer, {"MODELS": models}, None),
        ("postprocess", postprocess, {"MODELS": models}, None),
        ("router", router, {"MODEL_HOSTS": host, "TOKENIZERS": tokenizer, "POSTPROCESSORS": postprocess}, None),
    ]
    async with AsyncExitStack() as stack:
        for service, address, settings, module in plans:
            told = {f"WEIR_{service.upper()}_{name}": value for name, value in settings.items()}
            told |= {
                f"WEIR_{service.upper()}_HOST": "127.0.0.1",
                f"WEIR_{service.upper()}_PORT": address.rpartition(":")[2],
            }
            child = await ChildProcess.start(
                service, address, told | executor, tmp_path / f"{service}.log", module=module
            )
            stack.push_async_callback(child.stop, _SECONDS)
            await child.until_serving(_SECONDS)
        client = await stack.enter_async_context(Client(router))

        async def answers(model: str) -> bool:
            try:
                answer = await collect(client.generate("Once upon a time", model=model, timeout=30))
            except Exception:
                return False
            return bool(answer.text)

        async def until(model: str, wanted: bool) -> None:
            async with asyncio.timeout(_SECONDS):
                while await answers(model) is not wanted:
                    await asyncio.sleep(0.1)

        assert not await answers("second")
        loaded = await asyncio.to_thread(
            run_weir, tmp_path, "operations", "load-model", "demo", "--model", "second", "--router", router
        )
        assert loaded.returncode == 0, loaded.stderr
        assert loaded.stdout.split() == [host, "done"]
        await until("second", True)
        again = await asyncio.to_thread(
            run_weir, tmp_path, "operations", "load-model", "demo", "--model", "second", "--router", router
        )
        assert (again.returncode, "ALREADY_EXISTS" in again.stdout) == (1, True)
        gone = await asyncio.to_thread(run_weir, tmp_path, "operations", "unload-model", "second", "--router", router)
        assert gone.returncode == 0, gone.stderr
        await until("second", False)


@pytest.mark.parametrize("arguments", [["unload-model", "none"], ["load-adapter", "a", "d"]])
def test_a_router_that_is_not_there_is_told_with_what_to_do(tmp_path: Path, arguments: list[str]) -> None:
    done = run_weir(tmp_path, "operations", *arguments, "--router", f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is it running?" in done.stderr
