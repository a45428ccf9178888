"""The seam for what a tier lets in at all, and three answers. Pure: no block is held here, and none is moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

from weir_kvstore.record import Address, Record


class Admission(Protocol):
    """Asked once for each block that is offered to a tier. One object per tier."""

    def admits(self, record: Record) -> bool:
        """Being refused is being remembered, by those that remember: the same block may be let in the next time."""
        ...

    def evicted(self, record: Record) -> None:
        """This block had to go to make room."""
        ...


class AdmitAll:
    def admits(self, record: Record) -> bool:  # noqa: ARG002
        return True

    def evicted(self, record: Record) -> None:
        pass


class SecondUse:
    """Lets in what was offered before: what is computed once and never again does not wear the tier.

    Addresses are remembered by two Bloom filters of 128 KiB, the younger of which is filled: between `addresses` and
    twice as many of the last ones. One in some 400 strangers is let in at once.
    """

    _BITS: Final = 1 << 20

    def __init__(self, addresses: int = 65_536) -> None:
        self._addresses = addresses
        self._young, self._old = bytearray(self._BITS // 8), bytearray(self._BITS // 8)
        self._in_young = 0

    def admits(self, record: Record) -> bool:
        bits = self._bits_of(record.address)
        if _has(self._young, bits):
            return True
        known = _has(self._old, bits)
        self._remember(bits)
        return known

    def evicted(self, record: Record) -> None:
        """It was let in for being used twice, and may be so again."""

    def _remember(self, bits: list[int]) -> None:
        if self._in_young == self._addresses:
            self._young, self._old = bytearray(self._BITS // 8), self._young
            self._in_young = 0
        for bit in bits:
            self._young[bit >> 3] |= 1 << (bit & 7)
        self._in_young += 1

    def _bits_of(self, address: Address) -> list[int]:
        """Four places, taken from the address itself: both of its parts are hashes already."""
        mixed = int.from_bytes(address.block_hash) ^ int.from_bytes(address.namespace)
        return [(mixed >> shift) % self._BITS for shift in (0, 32, 64, 96)]


class SavedSeconds:
    """Lets in what saves at least as many seconds of prefill per byte as what has to go for it.

    What has to go is known by an average over the last blocks that went. Each refusal lowers the threshold a little, so
    that a tier which lets in nothing, and so evicts nothing, does not keep what it has for ever.
    Blocks of which nobody told what they took are let in, and tell nothing when they go.
    """

    _WEIGHT: Final = 1 / 16  # of the newest in the average
    _RELENTS: Final = 1 / 1024  # of the threshold, by each refusal: half after 700

    def __init__(self) -> None:
        self.threshold = 0.0  # seconds per byte; a tier that has never evicted lets in everything

    def admits(self, record: Record) -> bool:
        if not record.prefill_seconds or _worth(record) >= self.threshold:
            return True
        self.threshold *= 1 - self._RELENTS
        return False

    def evicted(self, record: Record) -> None:
        if record.prefill_seconds:
            self.threshold += self._WEIGHT * (_worth(record) - self.threshold)


AdmissionName = Literal["all", "second_use", "saved_seconds"]
ADMISSIONS: Final[Mapping[AdmissionName, Callable[[], Admission]]] = {
    "all": AdmitAll,
    "second_use": SecondUse,
    "saved_seconds": SavedSeconds,
}


def make_admission(name: AdmissionName) -> Admission:
    return ADMISSIONS[name]()


def _worth(record: Record) -> float:
    return record.prefill_seconds / record.size_bytes


def _has(bitmap: bytearray, bits: list[int]) -> bool:
    return all(bitmap[bit >> 3] & 1 << (bit & 7) for bit in bits)
