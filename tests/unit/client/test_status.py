"""What `weir status` makes of an executor's answers."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from google.protobuf.duration_pb2 import Duration

from weir.executor.v1 import executor_pb2 as pb
from weir.executor.v1.executor_pb2_grpc import ExecutorServiceServicer, add_ExecutorServiceServicer_to_server
from weir_chassis.server import Registration
from weir_chassis.testing import serve_on_loopback
from weir_client import status
from weir_client.cli import main
from weir_client.stack import RunningService

NAME = pb.DESCRIPTOR.services_by_name["ExecutorService"].full_name


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


LOAD = pb.GetLoadResponse(
    step=9,
    running_sequences=1,
    waiting_requests=1,
    free_blocks=50,
    total_blocks=64,
    last_batch=pb.StepStats(sequences=2, prefill_tokens=500, decode_tokens=7, duration=_duration(0.031)),
)
REQUESTS = [
    pb.RequestState(request_id="r-1", tenant="acme", running_sequences=1, prompt_tokens=20, blocks=2),
    pb.RequestState(
        request_id="r-2",
        priority=3,
        waiting_sequences=2,
        waiting_reason=pb.WAITING_REASON_NO_SLOT,
        age=_duration(12.44),
        prompt_tokens=200,
    ),
]


class ScriptedExecutor(ExecutorServiceServicer):
    role = pb.EXECUTOR_ROLE_BOTH

    async def GetModelInfo(self, _: pb.GetModelInfoRequest, __: Any) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(role=self.role)

    async def GetLoad(self, _: pb.GetLoadRequest, __: Any) -> pb.GetLoadResponse:
        return LOAD

    async def ListRequests(self, _: pb.ListRequestsRequest, __: Any) -> pb.ListRequestsResponse:
        return pb.ListRequestsResponse(requests=REQUESTS)


async def test_an_executor_anywhere_is_asked_for_its_load_and_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = ScriptedExecutor()  # type: ignore[abstract]  # of the others nobody asks
    registration = Registration(add_ExecutorServiceServicer_to_server, executor, NAME)
    async with serve_on_loopback(registration) as channel:
        monkeypatch.setattr(status, "open_channel", lambda _: _Kept(channel))
        (plain,) = await status.ask_all("10.0.0.7:7702")
        (full,) = await status.ask_all("10.0.0.7:7702", with_requests=True)
        executor.role = pb.EXECUTOR_ROLE_PREFILL
        (prefill,) = await status.ask_all("10.0.0.7:7702")
    assert "prefill: 1 running" in prefill.to_line()
    assert json.loads(prefill.to_json())["role"] == "prefill"
    assert plain.requests == ()
    assert "1 running, 1 waiting, 14/64 blocks in use, step 9" in plain.to_line()
    assert plain.to_line().endswith("last batch 2 sequences, 500 + 7 tokens in 31 ms")
    assert full.to_line().splitlines()[1:] == [
        "  r-1  acme  priority 0  0.0 s  1 running  20 prompt + 0 tokens  2 blocks",
        "  r-2  -  priority 3  12.4 s  0 running, 2 waiting (no_slot)  200 prompt + 0 tokens  0 blocks",
    ]
    assert [state["request_id"] for state in json.loads(full.to_json())["requests"]] == ["r-1", "r-2"]


class _Kept:
    """A channel that outlives the block it is used in."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    async def __aenter__(self) -> Any:
        return self._channel

    async def __aexit__(self, *_: object) -> None:
        pass


def test_the_command_hands_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def ask_all(executor: str | None = None, *, with_requests: bool = False) -> list[status.Report]:
        asked.append((executor, with_requests))
        return [status.Report(RunningService("executor", "a:1", 0), "SERVING", LOAD, REQUESTS)]

    monkeypatch.setattr(status, "ask_all", ask_all)
    done = CliRunner().invoke(main, ["status", "--requests", "--executor", "10.0.0.7:7702"])
    assert done.exit_code == 0, done.output
    assert asked == [("10.0.0.7:7702", True)]
    assert "(no_slot)" in done.output
