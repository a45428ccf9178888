"""Directories that callers may name: those below a folder which the operator has set aside, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weir_chassis.errors import InvalidArgument

_MAX_SHOWN_CHARS = 200


def below(folder: Path, directory: str, files: Sequence[str], what: str) -> Path:
    """`directory` in `folder`, whose `files` are to be read. `what`: the folder's name, in words.

    Raises InvalidArgument for what is outside of it, by `..`, by an absolute path or by a link.
    """
    if not directory or "\0" in directory:
        raise InvalidArgument("directory", f"missing; a directory below the {what}")
    root = folder.resolve()
    found = (root / directory).resolve()
    if root not in found.parents:
        raise InvalidArgument("directory", f"{directory[:_MAX_SHOWN_CHARS]!r} is not below the {what}")
    for name in files:
        if root not in (found / name).resolve().parents:
            shown = directory[:_MAX_SHOWN_CHARS]
            raise InvalidArgument("directory", f"{shown!r}: {name} is a link to outside the {what}")
    return found
