"""Loads the word lists and sentences that stand beside the code as TOML, one file per module of the same name."""

import tomllib
from pathlib import Path
from typing import Any


def load_words(module_file: str) -> dict[str, Any]:
    """The TOML table that stands beside a module; call it with the module's `__file__`."""
    return tomllib.loads(Path(module_file).with_suffix(".toml").read_text(encoding="utf-8"))
