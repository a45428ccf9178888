"""A disk tier's file system that fails where it is told to, and bytes that change on disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weir_kvstore.tiers.disk import SegmentSlots
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.geometry import payload_offset


class FailingFiles(Files):
    """Fails the calls that `fails` says yes to, by name and path, with `error`."""

    def __init__(self, fails: Callable[[str, str], bool], error: int = errno.EIO) -> None:
        self.fails = fails
        self.error = error

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in {"write", "read", "read_direct", "allocate", "punch", "sync", "truncate"}:
            return found

        def call(fd: int, *arguments: Any) -> Any:
            if self.fails(name.removesuffix("_direct"), os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))):
                raise OSError(self.error, os.strerror(self.error))
            return found(fd, *arguments)

        return call


def flip(path: Path, place: int) -> None:
    """The byte at this place of the file is another one."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x5A]))


def spoil(directory: Path, slots: SegmentSlots, block_id: int) -> None:
    """A byte in the middle of the block's payload is another one."""
    block = slots._blocks[block_id]
    place = payload_offset(block.slot_bytes, block.slot) + block.size_bytes // 2
    flip(directory / f"segment-{block.slot_bytes}", place)
