"""Shadow traffic through a whole router: it is asked, compared and dropped, and the client sees nothing of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
import pytest

from contract.router_contract import Answer, collect
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.stream_pb2 import Receipt
from weir.router.v1 import router_pb2 as pb
from weir_chassis.clock import SystemClock
from weir_chassis.errors import WorkerLost
from weir_router.models.shadow import Answered, agreement

R1, R2 = (ModelVersion(model="bytes", revision=revision, tokenizer_hash="0" * 32) for revision in ("r1", "r2"))
SHADOWED = """
[[aliases.chat.targets]]
model = "bytes"
revision = "r1"

[aliases.chat.shadow]
model = "bytes"
revision = "r2"
sample = 1.0
tokens_per_minute = {tokens}
"""


def shadowed(tmp_path: Path, tokens: int = 100_000, more: str = "") -> AbstractAsyncContextManager[Suite]:
    file = tmp_path / "routing.toml"
    file.write_text(SHADOWED.format(tokens=tokens) + more)
    return suite(
        executors=[FakeExecutor(R1), FakeExecutor(R2)],
        tokenizers=[FakeTokenizer(R1), FakeTokenizer(R2)],
        config_file=file,
    )


async def ask(running: Suite, model: str = "chat") -> Answer:
    request = pb.GenerateRequest(text="hello", model=model, priority=3)
    return await collect(running.router.Generate(request, metadata=(("weir-tenant", "acme"),)))


def counted(running: Suite, name: str, **labels: str) -> float:
    labels = {"alias": "chat", **labels}
    return running.chassis.metrics.registry.get_sample_value(f"weir_router_{name}", labels) or 0.0


async def until_ended(running: Suite, end: str, count: int = 1) -> None:
    await running.until(lambda: counted(running, "shadow_requests_total", end=end) == count)


async def test_a_shadow_is_asked_the_same_and_nobody_hears_of_it(tmp_path: Path) -> None:
    async with shadowed(tmp_path) as running:
        answer = await ask(running)
        answer.check_complete()
        assert (answer.texts, answer.receipt.model_version.revision) == ({0: "hello"}, "r1")
        await until_ended(running, "answered")
        (real,), (shadow,) = (executor.submits for executor in running.fakes.executors)
        assert shadow.token_ids == real.token_ids
        assert shadow.sampling == real.sampling
        assert (real.priority, shadow.priority) == (3, -100)
        assert shadow.tenant not in ("", real.tenant)
        assert shadow.tenant_salt != real.tenant_salt
        assert shadow.request_id != real.request_id
        assert shadow.stopping.max_tokens == 6  # "hello" and its end
        assert 30 < shadow.time_left.ToTimedelta().total_seconds() <= 60
        assert counted(running, "shadow_token_agreement_sum") == 1.0
        assert counted(running, "shadow_ttft_seconds_count") == 1.0


async def test_what_is_counted_of_shadows_is_counted_of_nothing_else(tmp_path: Path) -> None:
    async with shadowed(tmp_path) as running:
        await ask(running)
        await until_ended(running, "answered")
        registry = running.chassis.metrics.registry
        assert registry.get_sample_value("weir_router_completion_tokens_total") == 6.0
        assert registry.get_sample_value("weir_router_ttft_seconds_count") == 1.0
        assert registry.get_sample_value("weir_router_attempts_total", {"end": "OK"}) == 1.0
        labels = {"alias": "chat", "arm": "bytes@r1", "end": "answered"}
        assert registry.get_sample_value("weir_router_alias_requests_total", labels) == 1.0


@pytest.mark.parametrize("fault", ["refuses", "is lost", "crashes the router's own code"])
async def test_a_shadow_that_fails_fails_nobody(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shadowed(tmp_path) as running:
        if fault == "refuses":
            running.fakes.executors[1].refusal = WorkerLost("broken")
        elif fault == "is lost":
            running.fakes.executors[1].crash.crash()
        else:
            monkeypatch.setattr("weir_router.models.shadow._shadow_of", lambda _: None)
        (await ask(running)).check_complete()
        await until_ended(running, "failed")
        assert running.chassis.background.failure is None


async def test_a_shadow_that_hangs_holds_up_nobody_and_has_a_deadline(tmp_path: Path) -> None:
    async with shadowed(tmp_path, more="deadline_seconds = 0.3\nmax_concurrent = 1\n") as running:
        running.fakes.executors[1].running.clear()
        for _ in range(3):
            (await ask(running)).check_complete()
        await until_ended(running, "dropped", 2)
        await until_ended(running, "failed")
        running.fakes.executors[1].running.set()


async def test_beyond_its_budget_none_is_asked(tmp_path: Path) -> None:
    async with shadowed(tmp_path, tokens=15) as running:
        await ask(running)  # 5 of the prompt and 6 drawn
        await until_ended(running, "answered")
        await ask(running)
        await until_ended(running, "dropped")
        assert len(running.fakes.executors[1].submits) == 1


async def test_a_request_that_fails_or_names_no_alias_has_no_shadow(tmp_path: Path) -> None:
    async with shadowed(tmp_path) as running:
        await ask(running, model="bytes@r1")
        running.fakes.executors[0].refusal = WorkerLost("broken")
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(running)
        await asyncio.sleep(0)
        assert not running.fakes.executors[1].submits


def answered(*outputs: str, tokenizer: str = "t") -> Answered:
    one = Answered(SystemClock(), receipt=Receipt(model_version=ModelVersion(tokenizer_hash=tokenizer)))
    one.token_ids = defaultdict(list, {index: list(text.encode()) for index, text in enumerate(outputs)})
    return one


@pytest.mark.parametrize(
    ("real", "shadow", "share"),
    [
        (answered("abcd"), answered("abcd"), 1.0),
        (answered("abcd"), answered("abxd"), 0.5),
        (answered("abcd"), answered("ab"), 0.5),
        (answered("ab"), answered("abcd"), 0.5),
        (answered("ab"), answered(), 0.0),
        (answered("ab", "cd"), answered("ab", "xd"), 0.5),
        (answered("ab"), answered("ab", tokenizer="u"), None),
        (answered(), answered(), None),
    ],
)
def test_how_far_two_answers_agree(real: Answered, shadow: Answered, share: float | None) -> None:
    assert agreement(real, shadow) == share
