"""Reads past the page cache: whole pages of the file, into whole pages of memory.

    file      │ page │ page │ page │ page │            what is asked for begins and ends anywhere
    asked for    ├────────────┼──────┤
    read      ├─ aside ─┼ in place ┼ aside ┤           what is no whole page goes through memory of our own

What this tier holds is a multiple of what memory does, and what is read from it goes to RAM: a copy in the page cache
would serve nobody, and would push out what others on this host have there. See open(2), O_DIRECT.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from weir_chassis.mapped_memory import private_memory
from weir_chassis.telemetry import get_logger
from weir_kvstore.tiers.disk.geometry import PAGE_BYTES

if TYPE_CHECKING:
    from weir_kvstore.tiers.disk.files import Files

_MAX_PARTS: Final = 1024  # what the kernel takes in one call


class Reads(StrEnum):
    """Which way the tier reads its blocks."""

    DIRECT = "direct"  # past the page cache, where the file system can do that
    BUFFERED = "buffered"  # through it, with reading ahead


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of one of the buffers, and where in the memory aside they come to."""

    aside: int
    into: memoryview


@dataclass(slots=True)
class Plan:
    """One request: `parts`, in this order, are whole pages of the file from `position` on."""

    position: int
    needed_bytes: int  # from there on; what follows fills up the last page
    parts: list[memoryview | range] = field(default_factory=list)  # a range: of the memory aside
    spans: list[Span] = field(default_factory=list)
    covered: int = 0  # where in the file the parts end
    aside_bytes: int = 0

    def in_place(self, whole_pages: memoryview) -> None:
        self.parts.append(whole_pages)
        self.covered += len(whole_pages)

    def aside(self, into: memoryview, position: int) -> None:
        """Pages that are shared with others are read once."""
        more = max(0, _up(position + len(into)) - self.covered)
        self.spans.append(Span(self.aside_bytes + position - self.covered, into))
        last = self.parts[-1] if self.parts else None
        if isinstance(last, range):
            self.parts[-1] = range(last.start, last.stop + more)
        else:
            self.parts.append(range(self.aside_bytes, self.aside_bytes + more))
        self.covered += more
        self.aside_bytes += more


def plan(into: Sequence[memoryview], position: int) -> Plan:
    """`into`: buffers, none empty, that are filled from one range of the file, from `position` on. Reads nothing."""
    lead = position % PAGE_BYTES
    found = Plan(position - lead, lead + sum(map(len, into)), covered=position - lead)
    for view in into:
        is_aligned = position % PAGE_BYTES == _address(view) % PAGE_BYTES == 0
        whole = len(view) - len(view) % PAGE_BYTES if is_aligned else 0
        if whole:
            found.in_place(view[:whole])
        if whole < len(view):
            found.aside(view[whole:], position + whole)
        position += len(view)
    return found


def read(fd: int, into: Sequence[memoryview], position: int) -> None:
    """Fills all of `into` from one range of a file that is open for this. Raises OSError (EIO) where it ends before."""
    filled = [view for view in into if view]
    if not filled:
        return
    wanted = plan(filled, position)
    aside = private_memory(wanted.aside_bytes).view() if wanted.aside_bytes else memoryview(b"")
    parts = [aside[part.start : part.stop] if isinstance(part, range) else part for part in wanted.parts]
    _fill(fd, parts, wanted.position, wanted.needed_bytes)
    for span in wanted.spans:
        span.into[:] = aside[span.aside : span.aside + len(span.into)]


def is_possible(files: Files, path: Path) -> bool:
    """Whether the file system of this file, which is not empty, reads so. All files of a tier are on one."""
    try:
        fd = files.open_direct(path)
        try:
            files.read_direct(fd, [memoryview(bytearray(1))], 0)
        finally:
            files.close(fd)
    except OSError as error:
        get_logger().warning("disk_reads_buffered", directory=str(path.parent), reason=str(error))
        return False
    return True


def _fill(fd: int, parts: list[memoryview], position: int, needed_bytes: int) -> None:
    """A file may end within its last page: nobody needs what would follow."""
    came = 0
    while came < needed_bytes:
        got = os.preadv(fd, parts[:_MAX_PARTS], position + came)
        came += got
        if not got or (got % PAGE_BYTES and came < needed_bytes):
            raise OSError(errno.EIO, "the segment ends before the block does")
        while parts and got >= len(parts[0]):
            got -= len(parts.pop(0))
        if got and parts:
            parts[0] = parts[0][got:]


def _up(position: int) -> int:
    return -(-position // PAGE_BYTES) * PAGE_BYTES


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
