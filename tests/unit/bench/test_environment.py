"""Environments are made by commands; here they are the shell's, which need no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from bench.environment import MissingPeerError, python_of
from bench.peers import Environment, Step


@dataclass(frozen=True)
class Scripted:
    """An environment whose steps are these."""

    name: str
    scripts: tuple[str, ...]

    def steps(self, directory: Path, python: str) -> list[Step]:
        return [
            Step(script, ("sh", "-c", f"mkdir -p {directory}; cd {directory}; {script}")) for script in self.scripts
        ]


def _python_of(root: Path, *scripts: str) -> Path:
    return python_of(cast("Environment", Scripted("peer", scripts)), root)


def test_steps_run_in_order_and_once(tmp_path: Path) -> None:
    for _ in range(2):
        assert _python_of(tmp_path, "echo one >> log", "echo two >> log") == tmp_path / "peer/bin/python"
    assert (tmp_path / "peer/log").read_text() == "one\ntwo\n"


def test_other_pins_install_again(tmp_path: Path) -> None:
    _python_of(tmp_path, "echo 1 >> log")
    _python_of(tmp_path, "echo 2 >> log")
    assert (tmp_path / "peer/log").read_text() == "1\n2\n"


def test_a_failed_step_says_which_and_why_and_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(MissingPeerError, match="echo no such package >&2; exit 3 ended with code 3: no such package"):
        _python_of(tmp_path, "echo no such package >&2; exit 3")
    assert not (tmp_path / "peer/.installed").exists()
    _python_of(tmp_path, "true")


def test_a_command_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Absent:
        name: str = "peer"

        def steps(self, directory: Path, python: str) -> list[Step]:
            return [Step("configure", ("no-such-cmake",))]

    with pytest.raises(MissingPeerError, match=r"configure: .*no-such-cmake"):
        python_of(cast("Environment", Absent()), tmp_path)
