"""A team's threads do over what one of them has begun and lost its core in, and give every result once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from weir_executor.native.build import SOURCES, find_compiler

_SOURCES = SOURCES / "kernels"
_CHECK = Path(__file__).with_name("team_check.cpp")


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("team") / "check"
    sources = [str(_CHECK), str(_SOURCES / "team.cpp")]
    command = [*find_compiler(), "-std=c++20", "-O2", "-pthread", f"-I{_SOURCES}", *sources, "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    return program


def test_every_item_is_given_once_though_threads_stop_in_the_middle_of_them(check: Path) -> None:
    done = subprocess.run([check], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50, "hardly anybody was overtaken"
