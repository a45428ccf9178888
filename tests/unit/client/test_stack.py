"""The file by which the client finds what `weir up` started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weir_client.stack import (
    DEFAULT_ROUTER,
    RunningService,
    clear_stack,
    read_stack,
    router_address,
    state_directory,
    write_stack,
)

ROUTER = RunningService("router", "127.0.0.1:7701", os.getpid())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_stack([ROUTER], tmp_path / "deep")
    assert read_stack(tmp_path / "deep") == [ROUTER]
    clear_stack(tmp_path / "deep", ROUTER.address)
    assert read_stack(tmp_path / "deep") == []


def test_a_stack_does_not_clear_what_a_newer_one_has_written(tmp_path: Path) -> None:
    write_stack([ROUTER], tmp_path)
    clear_stack(tmp_path, "127.0.0.1:7702")
    assert read_stack(tmp_path) == [ROUTER]


def test_the_file_of_a_killed_stack_is_passed_over(tmp_path: Path) -> None:
    nobody = 2**22 + 1  # above the kernel's largest pid
    write_stack([RunningService("router", "127.0.0.1:1", nobody)], tmp_path)
    assert read_stack(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"service": "router"}]', '{"a": 1}'])
def test_a_broken_file_is_no_stack(tmp_path: Path, text: str) -> None:
    (tmp_path / "stack.json").write_text(text)
    assert read_stack(tmp_path) == []


def test_the_router_is_the_given_one_else_the_stacks_else_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIR_STATE_DIR", str(tmp_path))
    assert router_address(None) == DEFAULT_ROUTER
    write_stack([ROUTER], tmp_path)
    assert router_address(None) == ROUTER.address
    assert router_address("host:1") == "host:1"


def test_the_state_directory_follows_the_environment() -> None:
    assert state_directory({"WEIR_STATE_DIR": "/a"}) == Path("/a")
    assert state_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/weir")
    assert state_directory({}) == Path.home() / ".local/state/weir"
