"""All ways in which blocks are copied here: Python's, and the native one by each instruction set that runs."""

from __future__ import annotations

from weir_executor.kv_transfer.copier import Copier, NativeCopier, PlainCopier
from weir_executor.native.build import NativeUnavailableError, isas


def _native(isa: str) -> list[NativeCopier]:
    try:
        return [NativeCopier(isa)]
    except NativeUnavailableError:
        return []


NATIVE = [copier for isa in isas() for copier in _native(isa)]
COPIERS: list[Copier] = [PlainCopier(), *NATIVE]


def name_of(copier: Copier) -> str:
    return f"{type(copier).__name__}-{copier.name}"
