"""Aliases through a whole router: fake workers of two revisions, and what a client sees of them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from contract.router_contract import Answer, collect
from fakes.executor import FakeExecutor
from fakes.suite import Suite, suite
from fakes.tokenizer import FakeTokenizer
from weir.fleet.v1.instance_pb2 import Price
from weir.inference.v1.model_pb2 import ModelVersion
from weir.inference.v1.routing_pb2 import Constraints, RoutingOptions
from weir.inference.v1.sampling_pb2 import StoppingConditions
from weir.inference.v1.stream_pb2 import Receipt
from weir.router.v1 import router_pb2 as pb
from weir_chassis.errors import InvalidArgument, ModelNotFound, NoWorker, WorkerLost
from weir_chassis.status import from_rpc_error

R1, R2 = (ModelVersion(model="bytes", revision=revision, tokenizer_hash="0" * 32) for revision in ("r1", "r2"))
AB = """
[[aliases.chat.targets]]
model = "bytes"
revision = "r1"
weight = {old}
arm = "old"

[[aliases.chat.targets]]
model = "bytes"
revision = "r2"
weight = {new}
arm = "new"
"""


def two_revisions(tmp_path: Path, config: str, **settings: Any) -> AbstractAsyncContextManager[Suite]:
    """A router whose file says so, and an executor and a tokenizer of each revision."""
    file = tmp_path / "routing.toml"
    file.write_text(config)
    return suite(
        executors=[FakeExecutor(R1), FakeExecutor(R2)],
        tokenizers=[FakeTokenizer(R1), FakeTokenizer(R2)],
        config_file=file,
        config_poll_seconds=0.02,
        **settings,
    )


async def ask(running: Suite, session: str = "", model: str = "chat", **metadata: str) -> Answer:
    request = pb.GenerateRequest(text="hello", model=model, routing=RoutingOptions(session=session))
    pairs = tuple((f"weir-{key}", value) for key, value in metadata.items())
    return await collect(running.router.Generate(request, metadata=pairs))


async def test_a_session_keeps_its_arm_and_its_revision(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=50, new=50)) as running:
        arms = {}
        for number in range(20):
            receipts = [(await ask(running, f"s{number}")).receipt for _ in range(2)]
            assert {receipt.alias for receipt in receipts} == {"chat"}
            (arms[number],) = {receipt.arm for receipt in receipts}
            assert {receipt.model_version.revision for receipt in receipts} == {"r1" if arms[number] == "old" else "r2"}
        assert set(arms.values()) == {"old", "new"}
        for executor, revision in zip(running.fakes.executors, ("r1", "r2"), strict=True):
            assert {submit.model_version.revision for submit in executor.submits} == {revision}


async def test_a_subject_of_a_tenant_keeps_its_arm_whatever_its_session(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=50, new=50)) as running:
        for subject in map(str, range(6)):
            answers = [await ask(running, f"s{i}", tenant="acme", subject=subject) for i in range(3)]
            assert len({answer.receipt.arm for answer in answers}) == 1


async def test_a_request_that_names_no_alias_says_nothing_of_one(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=50, new=50)) as running:
        receipt = (await ask(running, model="bytes")).receipt
        assert (receipt.alias, receipt.arm, receipt.selected_by) == ("", "", "")


async def test_where_nobody_serves_an_arm_its_subjects_get_the_next(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=1, new=1e9)) as running:
        assert (await ask(running)).receipt.arm == "new"
        running.fakes.workers["executor-1"].drain()
        await running.until_serving(4)
        assert (await ask(running)).receipt.arm == "old"
        running.fakes.workers["executor-0"].drain()
        await running.until_serving(3)
        with pytest.raises(NoWorker, match="at revision 'r2'"):
            await refused(running)


async def refused(running: Suite, model: str = "chat") -> None:
    try:
        await ask(running, model=model)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def test_aliases_are_among_what_is_known(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=1, new=1)) as running:
        with pytest.raises(ModelNotFound, match="bytes, chat"):
            await refused(running, model="other")


async def test_aliases_are_listed_beside_the_models(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=1, new=2)) as running:
        listed = await running.router.ListModels(pb.ListModelsRequest())
        assert [model.model_version.revision for model in listed.models] == ["r1", "r2"]
        assert [(alias.name, list(alias.models)) for alias in listed.aliases] == [("chat", ["bytes@r2", "bytes@r1"])]


async def test_an_embedding_goes_to_one_version_for_each_tenant(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=50, new=50)) as running:
        for tenant in ("a", "b", "c"):
            request = pb.EmbedRequest(model="chat", inputs=[pb.EmbedInput(text="x")])
            answers = [await running.router.Embed(request, metadata=(("weir-tenant", tenant),)) for _ in range(3)]
            assert len({answer.model_version.revision for answer in answers}) == 1


async def test_a_canary_that_fails_is_taken_back_and_nobody_meets_it_again(tmp_path: Path) -> None:
    config = AB.format(old=50, new=50) + "canary = { steps = [0.4], min_requests = 5 }"
    async with two_revisions(tmp_path, config) as running:
        running.fakes.executors[1].refusal = WorkerLost("broken")
        failed = 0
        for number in range(60):
            with suppress(grpc.aio.AioRpcError):
                await ask(running, f"s{number}")
                continue
            failed += 1
        assert failed == 5
        canary = next(v for v in running.routing.aliases.view()["chat"] if v.name == "new")
        assert (canary.weight_now, canary.reason[:10]) == (0.0, "error rate")
        metrics = running.chassis.metrics.registry
        labels = {"alias": "chat", "arm": "new"}
        assert metrics.get_sample_value("weir_router_canary_weight", labels) == 0.0
        assert metrics.get_sample_value("weir_router_alias_requests_total", labels | {"end": "failed"}) == 5.0
        rolled_back = labels | {"decision": "rolled_back"}
        assert metrics.get_sample_value("weir_router_canary_decisions_total", rolled_back) == 1.0


async def test_a_changed_file_changes_the_arms(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, AB.format(old=1, new=0)) as running:
        assert (await ask(running)).receipt.arm == "old"
        (tmp_path / "routing.toml").write_text(AB.format(old=0, new=1))
        await running.until(lambda: running.routing.aliases.order("chat", "x")[0].arm == "new")
        assert (await ask(running)).receipt.arm == "new"


RATED = (
    AB.format(old=1000, new=1)
    .replace('arm = "old"', 'arm = "old"\nquality = 0.4')
    .replace('arm = "new"', 'arm = "new"\nquality = 0.9')
)
# In micros for a token: of "hello", of which ten more are asked for.
CHEAP, DEAR = (Price(prompt_micros=micros * 10**6, completion_micros=micros * 10**6) for micros in (1, 3))


async def constrained(running: Suite, **constraints: Any) -> Receipt:
    request = pb.GenerateRequest(text="hello", model="chat", stopping=StoppingConditions(max_tokens=10))
    request.routing.constraints.CopyFrom(Constraints(**constraints))
    receipt: Receipt = (await collect(running.router.Generate(request))).receipt
    return receipt


async def test_constraints_are_met_by_the_subjects_own_target_or_by_another(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, RATED, prices=(CHEAP, DEAR)) as running:
        assert (await constrained(running, max_cost_micros=100)).arm == "old"
        assert (await constrained(running, max_cost_micros=15, min_quality=0.4)).arm == "old"
        receipt = await constrained(running, max_cost_micros=45, min_quality=0.5)
        assert (receipt.arm, receipt.model_version.revision) == ("new", "r2")
        assert (await constrained(running, max_ttft=Duration(seconds=60), min_quality=0.9)).arm == "new"


async def test_what_nobody_meets_is_refused_with_the_nearest_offer(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, RATED, prices=(CHEAP, DEAR)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await constrained(running, max_cost_micros=44, min_quality=0.9)
        error = from_rpc_error(caught.value)
        assert isinstance(error, InvalidArgument)
        assert error.metadata["constraints"] == "max_cost_micros"
        assert (error.metadata["nearest_revision"], error.metadata["nearest_cost_micros"]) == ("r2", "45")
        assert not any(executor.submits for executor in running.fakes.executors)


async def test_a_first_token_that_is_late_already_is_refused(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, RATED) as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await constrained(running, max_ttft=Duration(nanos=1))
        assert from_rpc_error(caught.value).metadata["constraints"] == "max_ttft"


async def test_a_request_may_name_a_revision(tmp_path: Path) -> None:
    async with two_revisions(tmp_path, "") as running:
        for revision in ("r1", "r2"):
            receipt = (await ask(running, model=f"bytes@{revision}")).receipt
            assert (receipt.model_version.revision, receipt.alias) == (revision, "")
        with pytest.raises(NoWorker, match="at revision 'r3'"):
            await refused(running, model="bytes@r3")
        with pytest.raises(ModelNotFound):
            await refused(running, model="other@r1")
