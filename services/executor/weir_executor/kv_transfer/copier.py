"""How blocks are copied out of a store's arena and into it: past the caches in one pass, or as Python can.

Out    what counts is the checksum of the copy, because others may write where the block lies: natively every byte is
       read once, stored and hashed, see `native/src/copies/`; else a strip is copied and the copy hashed, by and by
In     the store verifies what it finds, so here it is copied only
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Final, NamedTuple, Protocol

from xxhash import xxh3_64

from weir_chassis.mapped_memory import MappedMemory
from weir_chassis.telemetry import get_logger
from weir_executor.native.build import NativeUnavailableError
from weir_executor.native.library import Functions, best_isa, open_library

# What has been copied is still in the processor's second cache when it is hashed.
_STRIP_BYTES: Final = 512 * 1024
# XXH3's algorithm for long inputs is the native one; shorter ones have others.
_LONG_INPUT: Final = 241
_FUNCTIONS: Final[Functions] = {
    "weir_copies": (c_void_p, (c_char_p,)),
    "weir_copy_out": (c_int, (c_void_p, c_void_p, c_size_t, c_void_p, c_void_p, c_void_p, c_int, c_size_t)),
    "weir_copy_in": (c_uint64, (c_void_p, c_void_p, c_char_p, c_size_t)),
}


class Blocks(NamedTuple):
    """Where blocks of one size lie in an arena, and the XXH3-64 that each should have."""

    offsets: Sequence[int]
    checksums: Sequence[int]
    block_bytes: int


class Copier(Protocol):
    """Any thread, several at once, without the GIL while bytes move."""

    @property
    def name(self) -> str: ...

    def copy_out(self, source: MappedMemory, blocks: Blocks, target: MappedMemory, stride: int) -> int:
        """Copies the blocks to every `stride` bytes of the target.

        Returns how many were copied before the first whose copy has another checksum than it should.
        """
        ...

    def copy_in(self, target: MappedMemory, offset: int, payload: bytes) -> None: ...


class PlainCopier:
    """A `Copier`, wherever Python runs."""

    name = "plain"

    def copy_out(self, source: MappedMemory, blocks: Blocks, target: MappedMemory, stride: int) -> int:
        for index, (offset, checksum) in enumerate(zip(blocks.offsets, blocks.checksums, strict=True)):
            if _copy_one(source, offset, target, index * stride, blocks.block_bytes) != checksum:
                return index
        return len(blocks.offsets)

    def copy_in(self, target: MappedMemory, offset: int, payload: bytes) -> None:
        target.copy_in(offset, payload)


def _copy_one(source: MappedMemory, offset: int, target: MappedMemory, to: int, size_bytes: int) -> int:
    """Returns the checksum of the copy."""
    copy, digest = target.view()[to : to + size_bytes], xxh3_64()
    for start in range(0, size_bytes, _STRIP_BYTES):
        strip_bytes = min(_STRIP_BYTES, size_bytes - start)
        target.copy_from(to + start, source, offset + start, strip_bytes)
        digest.update(copy[start : start + strip_bytes])
    return digest.intdigest()


class NativeCopier:
    """A `Copier`, compiled."""

    def __init__(self, isa: str = "") -> None:
        """By that instruction set, or by the best. Raises `NativeUnavailableError`."""
        self._library = open_library("copies", _FUNCTIONS)
        self.name = best_isa(self._library, isa)
        self._copies = self._library.weir_copies(self.name.encode())
        self._short = PlainCopier()

    def copy_out(self, source: MappedMemory, blocks: Blocks, target: MappedMemory, stride: int) -> int:
        count = len(blocks.offsets)
        if blocks.block_bytes < _LONG_INPUT or not count:
            return self._short.copy_out(source, blocks, target, stride)
        to = target.address(0, (count - 1) * stride + blocks.block_bytes)
        for farthest in (min(blocks.offsets), max(blocks.offsets)):
            source.address(farthest, blocks.block_bytes)
        offsets, checksums = array("Q", blocks.offsets), array("Q", blocks.checksums)
        places = (source.address(0, 0), offsets.buffer_info()[0], checksums.buffer_info()[0], count)
        done: int = self._library.weir_copy_out(self._copies, to, stride, *places, blocks.block_bytes)
        return done

    def copy_in(self, target: MappedMemory, offset: int, payload: bytes) -> None:
        if len(payload) < _LONG_INPUT:
            self._short.copy_in(target, offset, payload)
        else:
            self._library.weir_copy_in(self._copies, target.address(offset, len(payload)), payload, len(payload))


def load_copier() -> Copier:
    """The native one where it can be had, compiled if need be: not for the event loop. A line in the log says which."""
    try:
        copier: Copier = NativeCopier()
    except NativeUnavailableError as error:
        get_logger().warning("blocks_are_copied_plainly", reason=str(error))
        return PlainCopier()
    get_logger().info("blocks_are_copied_natively", instructions=copier.name)
    return copier
