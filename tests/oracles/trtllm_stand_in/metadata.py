"""Writes the metadata of distributions that no public index has, or that are too large to be worth it."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path

# What the metadata of TensorRT-LLM 1.2.1 requires, of what our own packages touch.
VERSION = "1.2.1"
REQUIRES = {
    "numpy": "<2",
    "protobuf": ">=6.33.5",
    "pydantic": ">=2.9.1",
    "torch": ">=2.9.1,<=2.10.0a0",
    "transformers": "==4.57.3",
    "xgrammar": "==0.1.32",
}


def write(name: str, version: str, requires: Iterable[str] = ()) -> None:
    folder = Path(sysconfig.get_paths()["purelib"]) / f"{name}-{version}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "INSTALLER").write_text("pip\n")
    (folder / "RECORD").write_text("")


if __name__ == "__main__":
    write("torch", "2.9.1")
    write("triton", "3.5.1")
    write("tensorrt_llm", VERSION, (f"{name}{specifier}" for name, specifier in REQUIRES.items()))
