"""Slots on disk: what is committed is found again by the next process."""

from weir_kvstore.tiers.disk.direct import Reads
from weir_kvstore.tiers.disk.directory import DirectoryRefusedError
from weir_kvstore.tiers.disk.fsync import Fsync
from weir_kvstore.tiers.disk.slots import SegmentSlots

__all__ = ["DirectoryRefusedError", "Fsync", "Reads", "SegmentSlots"]
