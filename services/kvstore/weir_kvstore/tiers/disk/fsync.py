"""How far a commit goes before it counts."""

from __future__ import annotations

from enum import StrEnum


class Fsync(StrEnum):
    """What a commit waits for."""

    NONE = "none"  # the kernel has it: it survives the end of the process, kill -9 included, but not of the machine
    COMMIT_BATCH = "commit-batch"  # the disk has it: it survives a power loss; one sync for all that wait together
