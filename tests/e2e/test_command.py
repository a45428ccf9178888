"""The `weir` command against five real processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from e2e.conftest import Stack, json_lines, run_weir, start_stack


def test_chat_streams_an_answer_and_a_timing_line(stack: Stack) -> None:
    done = stack.weir("chat", "What is a weir?", "--temperature", "0", "--max-tokens", "64")
    assert done.returncode == 0, done.stderr
    assert "water" in done.stdout or "dam" in done.stdout or "river" in done.stdout
    assert "TTFT" in done.stderr
    assert "tokens/s" in done.stderr


def test_generate_continues_a_text(stack: Stack) -> None:
    done = stack.weir("generate", "Once upon a time", "--max-tokens", "12", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 3


def test_an_answer_follows_a_guide(stack: Stack) -> None:
    """Random seeds and a high temperature: whatever is valid here, the guide made so."""
    schema = (
        '{"type": "object", "properties": {"n": {"enum": [1, 22]}, "ok": {"type": "boolean"}}, "required": ["n", "ok"]}'
    )
    for seed in ("1", "2"):
        hot = ["--temperature", "2", "--seed", seed]
        chosen = stack.weir("chat", "Is water wet?", "--choice", "surely", "--choice", "é, no", *hot)
        assert chosen.stdout.strip() in {"surely", "é, no"}, chosen
        done = stack.weir("generate", "JSON:", "--json-schema", schema, "--max-tokens", "200", *hot)
        value = json.loads(done.stdout)
        assert value["n"] in (1, 22), done
        assert isinstance(value["ok"], bool), done
    refused = stack.weir("chat", "hi", "--regex", "[a-z")
    assert refused.returncode == 1
    assert "sampling.guide.regex" in refused.stderr


def test_json_prints_the_events_in_their_order(stack: Stack) -> None:
    done = stack.weir("chat", "Hello", "--json", "--max-tokens", "8", "--seed", "7")
    events = [next(iter(line)) for line in json_lines(done.stdout)]
    assert events[0] == "accepted"
    assert events[-3:] == ["finished", "usage", "receipt"]
    assert set(events[1:-3]) == {"delta"}
    receipt = json_lines(done.stdout)[-1]["receipt"]
    assert isinstance(receipt, dict)
    assert receipt["seed"] == "7"


def test_the_same_seed_draws_the_same_answer(stack: Stack) -> None:
    first, second = (stack.weir("chat", "Tell me a story.", "--seed", "11", "--max-tokens", "24") for _ in range(2))
    assert first.stdout == second.stdout != ""


def test_several_outputs_are_printed_apart(stack: Stack) -> None:
    done = stack.weir("chat", "Tell me a story.", "-n", "2", "--max-tokens", "8", "--seed", "3")
    assert "--- output 1" in done.stderr
    assert len(done.stdout.strip().splitlines()) >= 2


def test_embed_prints_a_vector_for_each_text(stack: Stack) -> None:
    first, second = json_lines(stack.weir("embed", "A low dam.", "Music", "--pooling", "mean").stdout)
    assert (first["text"], second["text"]) == ("A low dam.", "Music")
    (again,) = json_lines(stack.weir("embed", "A low dam.", "--pooling", "mean").stdout)
    values, others = ([float(value) for value in line["embedding"]] for line in (first, second))  # type: ignore[attr-defined]
    assert again["embedding"] == pytest.approx(values, abs=1e-2)
    assert math.hypot(*values) == pytest.approx(1.0, abs=1e-4)
    assert values != pytest.approx(others, abs=1e-2)


def test_models_lists_the_model_and_its_workers(stack: Stack) -> None:
    (model,) = json_lines(stack.weir("models", "--json").stdout)
    assert model["model_version"]["model"] == "demo"  # type: ignore[index]
    assert model["healthy_workers"] == 2
    assert "2/2 workers healthy" in stack.weir("models").stdout


def test_status_shows_each_service(stack: Stack) -> None:
    done = stack.weir("status", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json_lines(done.stdout)
    names = sorted(str(report["service"]) for report in reports)
    assert names == ["executor", "executor", "kvstore", "postprocess", "router", "tokenizer"]
    assert {report["health"] for report in reports} == {"SERVING"}
    assert "blocks in use" in stack.weir("status").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chat", "hi", "--model", "nosuch"], "MODEL_NOT_FOUND"),
        (["chat", "hi", "--temperature", "-1"], "sampling.temperature"),
        (["chat", "hi", "-n", "99"], "sampling.n"),
        (["generate", ""], "INVALID_ARGUMENT"),
        (["chat", "hi", "--router", "127.0.0.1:1", "--timeout", "5"], "weir up"),
        (["chat", "hi", "--top-k", "-5"], "--top-k"),
    ],
)
def test_a_bad_call_is_one_readable_line(stack: Stack, arguments: list[str], says: str) -> None:
    done = stack.weir(*arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [[], ["up"], ["chat"], ["generate"], ["models"], ["status"], ["demo"]])
def test_every_command_has_help_with_an_example(tmp_path: Path, command: list[str]) -> None:
    done = run_weir(tmp_path, *command, "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_status_without_a_stack_says_what_to_do(tmp_path: Path) -> None:
    done = run_weir(tmp_path, "status")
    assert done.returncode == 1
    assert "weir up" in done.stderr


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    done = run_weir(tmp_path, "up", "--model", str(tmp_path))
    assert done.returncode == 1
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_process_answers_as_five_do(stack: Stack, tmp_path: Path) -> None:
    asked = ["chat", "What is a weir?", "--temperature", "0", "--max-tokens", "24"]
    (key := tmp_path / "key").write_text("a secret for this test")
    alone = start_stack(tmp_path, "--one-process", "--watermark-key", str(key))
    try:
        assert alone.weir(*asked).stdout == stack.weir(*asked).stdout
        assert len({service.pid for service in alone.services}) == 1
        _check_watermarks(alone)
    finally:
        assert alone.stop() == 0


def _check_watermarks(marking: Stack) -> None:
    """Text that goes out and comes back is tokenized anew, and its mark is still there; other text has none."""
    hot = ["generate", "Once upon a time", "--max-tokens", "200", "--temperature", "2"]
    marked, plain = (
        " ".join(marking.weir(*hot, "--seed", seed, *more).stdout for seed in ("5", "6"))
        for more in (["--watermark"], [])
    )
    (found,), (nothing,) = (json_lines(marking.weir("detect", text).stdout) for text in (marked, plain))
    assert isinstance(found["p_value"], float)
    assert isinstance(nothing["p_value"], float)
    assert found["p_value"] < 1e-4, found
    assert nothing["p_value"] > 1e-2, nothing


def test_ctrl_c_leaves_no_process_and_no_state(tmp_path: Path) -> None:
    running = start_stack(tmp_path, "--kv-store-mib", "16")
    pids = [service.pid for service in running.services]
    assert running.stop() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "stack.json").exists()
