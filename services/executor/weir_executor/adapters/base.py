"""Whether an adapter was trained on the weights that are served here, as far as anybody has said what those were."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from weir.inference.v1.model_revision import model_revision
from weir_chassis.errors import RevisionMismatch
from weir_chassis.telemetry import get_logger
from weir_executor.adapters.config import AdapterConfig

_HEX = re.compile(r"[0-9a-f]{7,}")


@dataclass(frozen=True, slots=True)
class Base:
    """What is served: the name clients use, its revision, and where it lies."""

    model: str
    revision: str
    model_dir: Path


def check_base(config: AdapterConfig, base: Base, asked_revision: str | None) -> None:
    """Raises RevisionMismatch when the caller, or the adapter's configuration, names another base.

    A configuration may name a directory, whose fingerprint then counts; or a commit, which counts where the served
    revision is one too. A name alone proves nothing, since folders and models are renamed: one that differs is logged.
    """
    if asked_revision is not None and asked_revision != base.revision:
        raise _mismatch(base, asked_revision)
    if _are_commits(config.base_revision, base.revision) and config.base_revision != base.revision:
        raise _mismatch(base, config.base_revision)
    trained_on = Path(config.base_name)
    if trained_on.is_absolute() and (trained_on / "config.json").is_file():
        _check_directory(trained_on, base)
    elif config.base_name and trained_on.name not in (base.model, base.model_dir.name):
        get_logger().warning("adapter_base_has_another_name", adapter_base=config.base_name[:128], model=base.model)


def _check_directory(trained_on: Path, base: Base) -> None:
    if trained_on.samefile(base.model_dir):
        return
    theirs = model_revision(trained_on)
    if theirs != model_revision(base.model_dir):
        raise _mismatch(base, theirs)


def _are_commits(one: str, other: str) -> bool:
    return len(one) == len(other) and all(_HEX.fullmatch(text) for text in (one, other))


def _mismatch(base: Base, found: str) -> RevisionMismatch:
    return RevisionMismatch(
        f"the adapter was made for another revision of {base.model!r}",
        metadata={"revision": base.revision, "adapter_base_revision": found[:128]},
    )
