"""A library is compiled once, by one process at a time, whole or not at all."""

from __future__ import annotations

import ctypes
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from weir_executor.native import build
from weir_executor.native.build import (
    LIBRARIES,
    SOURCES,
    NativeUnavailableError,
    cache_dir,
    find_compiler,
    library_path,
)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that takes a moment and writes down that it was called; what it makes is its command line."""
    script = tmp_path / "c++"
    script.write_text(
        f"""#!{sys.executable}
import pathlib, sys, time
log = pathlib.Path({str(tmp_path / "log")!r})
if sys.argv[1:] == ["--version"]:
    print("a compiler")
else:
    time.sleep(0.05)
    with log.open("a") as file:
        file.write(" ".join(sys.argv[1:]) + chr(10))
    pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text("made")
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("WEIR_NATIVE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _calls(place: Path) -> list[str]:
    return (place / "log").read_text().splitlines()


@pytest.mark.parametrize("name", LIBRARIES)
def test_compiles_every_source_for_every_instruction_set_and_keeps_it(compiler: Path, name: str) -> None:
    path = library_path(name)
    assert path.read_text() == "made"
    assert path.parent == cache_dir() == compiler / "cache"
    assert path.name.startswith(f"{name}-")
    compiled, linked = _calls(compiler)[:-1], _calls(compiler)[-1]
    sources = {str(source) for source in (SOURCES / name).glob("*.cpp")}
    assert {call.split(" -c ")[1].split()[0] for call in compiled} == sources
    assert [isa for isa in build.isas() if any(f"-DWEIR_ISA={isa} " in call for call in compiled)] == list(build.isas())
    assert linked.count(".o") == len(compiled)
    assert [entry.suffix for entry in sorted(path.parent.iterdir())] == [".lock", ".so"]
    assert library_path(name) == path
    assert len(_calls(compiler)) == len(compiled) + 1


def test_every_folder_of_sources_is_a_library() -> None:
    assert sorted(entry.name for entry in SOURCES.iterdir() if entry.is_dir()) == list(LIBRARIES)


def test_two_processes_compile_once(compiler: Path) -> None:
    command = [sys.executable, "-m", "weir_executor.native.build", "copies"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert said[0] == said[1]
    assert said[0].startswith("native copies: ")
    assert sum("-shared" in call for call in _calls(compiler)) == 1


def test_another_compiler_or_flag_is_another_library(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library_path("copies")
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-g"))
    assert library_path("copies") != first
    (compiler / "c++").write_text((compiler / "c++").read_text().replace("a compiler", "a newer compiler"))
    assert len({first, library_path("copies"), library_path("kernels")}) == 3


def test_no_compiler(compiler: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(NativeUnavailableError, match="no C\\+\\+ compiler '/nowhere/c\\+\\+'"):
        library_path("kernels")
    build.main()
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == [f"native {name}" for name in LIBRARIES]
    assert all("not built, slower ways are taken instead: there is no C++ compiler" in line for line in said)


def test_a_compiler_that_fails_leaves_nothing(compiler: Path) -> None:
    (compiler / "c++").write_text("#!/bin/sh\n[ $1 = --version ] && exit\necho 'src/x.cpp:1: wrong' >&2\nexit 1\n")
    with pytest.raises(NativeUnavailableError, match=r"c\+\+ failed: src/x\.cpp:1: wrong"):
        library_path("copies")
    assert [entry.suffix for entry in cache_dir().iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (compiler / "file").write_text("")
    monkeypatch.setenv("WEIR_NATIVE_CACHE", str(compiler / "file" / "cache"))
    with pytest.raises(NativeUnavailableError, match="the cache cannot be written"):
        library_path("copies")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEIR_NATIVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "weir" / "native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "weir" / "native"


def test_what_was_compiled_ahead_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("WEIR_NATIVE_LIBRARIES", str(tmp_path))
    with pytest.raises(NativeUnavailableError, match=r"WEIR_NATIVE_LIBRARIES: .*kernels\.so is no file"):
        library_path("kernels")
    (tmp_path / "kernels.so").write_text("made")
    assert library_path("kernels") == tmp_path / "kernels.so"


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_real_compiler_makes_what_loads(name: str) -> None:
    find_compiler()
    assert ctypes.CDLL(str(library_path(name))).weir_isa
