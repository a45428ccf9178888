"""What `weir kv` makes of a store's answers, and of traces."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration

from weir.kvstore.v1 import kvstore_pb2 as pb
from weir_client import kv
from weir_client.cli import main
from weir_client.printing import columns, size

HOURS_6 = Duration()
HOURS_6.FromTimedelta(timedelta(hours=6))
STATS = pb.GetStatsResponse(
    tiers=[
        pb.TierStats(
            tier="ram", blocks=12, bytes=3 << 20, capacity_bytes=4 << 20, hits=90, misses=10, stored=20, evicted=8,
            policy="lfu", ttl=HOURS_6, read_bytes=5 << 30,
        ),
        pb.TierStats(tier="disk", policy="fifo", fault="writing: No space left on device"),
    ],
    live_leases=2,
    tenants=[pb.TenantStats(tenant="acme", tier="ram", bytes=1 << 20, max_bytes=2 << 20)],
    sources=[pb.SourceStats(source="executor-1", blocks=77, age=Duration(seconds=3))],
    saved_seconds=12.34,
    config='min_prefix_tokens = 0\n\n[[tier]]\nkind = "ram"\n',
    config_error="tier[0].ttl='6 hours': no duration",
)  # fmt: skip


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(kvstore: str | None) -> pb.GetStatsResponse:
        assert kvstore == "10.0.0.7:7703"
        return STATS

    monkeypatch.setattr(kv, "_ask", ask)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["kv", *arguments])


def cells(text: str, first: str) -> list[list[str]]:
    """The rows that begin with this word."""
    return [line.split() for line in text.splitlines() if line.split()[:1] == [first]]


@pytest.mark.usefixtures("answers")
def test_stats_are_tables() -> None:
    done = run("stats", "--kvstore", "10.0.0.7:7703")
    assert done.exit_code == 0
    held, served = cells(done.output, "ram")
    assert held == ["ram", "12", "3.0", "MiB", "4.0", "MiB", "75%", "lfu", "6.0", "h"]
    assert served[:5] == ["ram", "90", "10", "90.0%", "20"]
    assert cells(done.output, "acme") == [["acme", "ram", "1.0", "MiB", "2.0", "MiB"]]
    assert cells(done.output, "executor-1") == [["executor-1", "77", "3", "s", "ago"]]
    assert "12.3 s of prefill saved; 2 leases live" in done.output
    assert "disk: writing: No space left on device" in done.output


@pytest.mark.usefixtures("answers")
def test_stats_as_json_leave_nothing_out() -> None:
    told = json.loads(run("stats", "--json", "--kvstore", "10.0.0.7:7703").output)
    assert (told["saved_seconds"], told["tiers"][0]["hits"], told["tiers"][1]["hits"]) == (12.34, "90", "0")


@pytest.mark.usefixtures("answers")
def test_tiers_are_what_is_in_force_and_what_is_refused() -> None:
    done = run("tiers", "--kvstore", "10.0.0.7:7703")
    assert done.exit_code == 0
    assert cells(done.output, "ram")[0][:2] == ["ram", "serving"]
    assert "writing: No space left on device" in done.output
    assert STATS.config.rstrip() in done.output
    assert "refused: tier[0].ttl='6 hours': no duration" in done.output
    told = json.loads(run("tiers", "--json", "--kvstore", "10.0.0.7:7703").output)
    assert (told["config"], told["config_error"], len(told["tiers"])) == (STATS.config, STATS.config_error, 2)


def test_nobody_to_ask_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEIR_STATE_DIR", str(tmp_path))
    done = run("stats")
    assert done.exit_code == 1
    assert "start one with 'weir up', or name it with --kvstore" in done.output


def test_a_store_that_does_not_answer_says_what_to_do() -> None:
    done = run("stats", "--kvstore", "127.0.0.1:1")
    assert done.exit_code == 1
    assert "WORKER_LOST" in done.output
    assert "--kvstore" in done.output


def test_a_synthetic_trace_is_played_to_every_policy() -> None:
    arguments = ("trace", "--synthetic", "scan", "--requests", "60", "--seed", "3")
    done = run(*arguments)
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == ["60", "policy", "lru", "lfu", "fifo", "s3fifo"]
    assert run(*arguments).output == done.output
    told = [json.loads(line) for line in run(*arguments, "--json", "--blocks", "100").output.splitlines()]
    assert {one["policy"]: one["capacity"] for one in told} == dict.fromkeys(("lru", "lfu", "fifo", "s3fifo"), 100)
    assert all(0 <= one["hit_rate"] < 1 for one in told)


def test_a_saved_trace_is_played_alike(tmp_path: Path) -> None:
    path = str(tmp_path / "trace.jsonl")
    made = run("trace", "--synthetic", "zipf", "--requests", "30", "--save", path)
    assert made.exit_code == 0
    assert run("trace", path).output == made.output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "one of FILE and --synthetic"),
        (("--synthetic", "scan", "{file}"), "one of FILE and --synthetic"),
        (("{file}",), "trace.jsonl:1"),
        (("{empty}",), "asks for no block"),
    ],
)
def test_what_is_no_trace_is_told(arguments: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text("nonsense\n")
    (tmp_path / "empty.jsonl").write_text("")
    names = {"file": tmp_path / "trace.jsonl", "empty": tmp_path / "empty.jsonl"}
    done = run("trace", *(argument.format(**names) for argument in arguments))
    assert done.exit_code != 0
    assert problem in done.output


def test_without_the_store_installed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "weir_client.kv_trace", raising=False)
    monkeypatch.setitem(sys.modules, "weir_kvstore.replay.replay", _Missing())
    done = run("trace", "--synthetic", "scan")
    assert done.exit_code == 1
    assert "pip install 'weir[local]'" in done.output


class _Missing:
    """A module that is not there."""

    def __getattr__(self, name: str) -> Any:
        raise ModuleNotFoundError("No module named 'weir_kvstore'", name="weir_kvstore")


def test_columns_stand_below_one_another() -> None:
    assert columns([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 50, "3072.0 TiB")]
)
def test_sizes_are_read_by_people(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text
