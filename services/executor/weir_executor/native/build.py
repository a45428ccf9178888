"""C++ sources → shared libraries, once per machine and version: compiled when first asked for, kept in a cache.

A folder of `src/` is a library: `copies` moves blocks between memories, `kernels` computes models on a CPU. A library
has a part for each instruction set of the processor's family; which one runs is decided when it is loaded, so one cache
may serve different machines.

python -m weir_executor.native.build [LIBRARY …]     compiles ahead of time: these, or all
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = ("copies", "kernels")
SOURCES = Path(__file__).with_name("src")
# No -ffast-math: a NaN must stay one, and sums must be added in the order that is written.
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-pthread",
    "-w",
)
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")
_X86_ISAS: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": _AVX512,
    "avx512bf16": (*_AVX512, "-mavx512bf16", "-mavx512vnni"),
}
# A compiler takes about ten seconds for the larger library; one that takes this long hangs.
_COMPILE_SECONDS = 300.0


class NativeUnavailableError(Exception):
    """The library cannot be had here; says why."""


def library_path(name: str) -> Path:
    """The compiled library; compiles it when the cache does not have it. Raises `NativeUnavailableError`.

    `WEIR_NATIVE_LIBRARIES` names a directory of libraries that were compiled ahead of these very sources, as an image
    without compiler has it: `NAME.so` each.
    """
    assert name in LIBRARIES, name
    if given := os.environ.get("WEIR_NATIVE_LIBRARIES"):
        return _compiled_ahead(Path(given) / f"{name}.so")
    compiler = find_compiler()
    path = cache_dir() / f"{name}-{_fingerprint(compiler, name)}.so"
    if not path.exists():
        with _alone(path):
            if not path.exists():  # another process may have made it meanwhile
                _compile(compiler, name, path)
    return path


def _compiled_ahead(path: Path) -> Path:
    if not path.is_file():
        raise NativeUnavailableError(f"WEIR_NATIVE_LIBRARIES: {path} is no file")
    return path


def cache_dir() -> Path:
    """`WEIR_NATIVE_CACHE`, or a directory of ours in the user's cache."""
    given = os.environ.get("WEIR_NATIVE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "weir" / "native"


def find_compiler() -> list[str]:
    """The command that PyTorch takes for extensions: `CXX`, or the system's compiler."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not command or shutil.which(command[0]) is None:
        raise NativeUnavailableError(f"there is no C++ compiler {' '.join(command)!r}")
    return command


def isas() -> Mapping[str, tuple[str, ...]]:
    """Which a library has parts for here, the plainest first, and the compiler's flags for each."""
    return _X86_ISAS if platform.machine().lower() in ("x86_64", "amd64") else {"plain": ()}


def _fingerprint(compiler: list[str], name: str) -> str:
    """Of everything that decides what the library is."""
    digest = hashlib.sha256()
    digest.update(_run([*compiler, "--version"]).encode())
    digest.update(repr((_FLAGS, isas(), platform.machine())).encode())
    for source in sorted([*SOURCES.glob("*.h"), *(SOURCES / name).iterdir()]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two processes must not compile the same thing at once. Whoever dies while compiling lets go of the lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise NativeUnavailableError(f"the cache cannot be written: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(compiler: list[str], name: str, path: Path) -> None:
    """The file that is named as the library is compiled once per instruction set, with WEIR_ISA naming it."""
    sources = SOURCES / name
    with tempfile.TemporaryDirectory(prefix="weir-native-", dir=path.parent) as scratch:
        none: tuple[str, ...] = ()
        units = [(source.stem, source, none) for source in sorted(sources.glob("*.cpp")) if source.stem != name]
        # The plainest first: where the linker finds one function in several objects it keeps the first.
        units += [(isa, sources / f"{name}.cpp", (f"-DWEIR_ISA={isa}", *flags)) for isa, flags in isas().items()]
        objects = [f"{scratch}/{unit}.o" for unit, _, _ in units]
        commands = [
            [*compiler, *_FLAGS, *flags, "-c", str(source), "-o", target]
            for (_, source, flags), target in zip(units, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(_run, commands))
        made = f"{scratch}/{name}.so"
        _run([*compiler, "-shared", "-pthread", *objects, "-o", made])
        Path(made).replace(path)  # whole or not at all


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (the operator's own compiler)
            command, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise NativeUnavailableError(f"{command[0]} failed: {said[0] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]}: {error}") from error
    return done.stdout


def main(names: Sequence[str] = LIBRARIES) -> None:
    """Never fails: all that the libraries do is done without them, too, more slowly."""
    for name in names:
        try:
            print(f"native {name}: {library_path(name)}")  # noqa: T201 (a line of progress)
        except NativeUnavailableError as error:
            print(f"native {name}: not built, slower ways are taken instead: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:] or LIBRARIES)
