"""A trace: what was looked up, one request a line, so that it can be played again to any policy.

    {"time": 12.5, "tenant": "acme", "namespace": "00…", "block_hashes": "9f…3c…", "tokens": 1024}

Hashes are hexadecimal, 32 digits each, those of a chain one after another. They tell no prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weir.kvstore.v1.block_hash import split_hashes
from weir_kvstore.bounds import HASH_BYTES, MAX_CHAIN_BLOCKS

MAX_LINE_CHARS: Final = 2 * HASH_BYTES * MAX_CHAIN_BLOCKS + 1024


class TraceError(ValueError):
    """This is no trace; says in which line."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """One prompt's full blocks, first block first."""

    time: float  # seconds; from when does not matter
    block_hashes: bytes  # 16 bytes each
    tokens: int = 0  # of these blocks; 0: not told
    tenant: str = ""
    namespace: bytes = b""

    @property
    def chain(self) -> list[bytes]:
        return split_hashes(self.block_hashes)


def to_line(lookup: Lookup) -> str:
    return json.dumps(
        {
            "time": round(lookup.time, 6),
            "tenant": lookup.tenant,
            "namespace": lookup.namespace.hex(),
            "block_hashes": lookup.block_hashes.hex(),
            "tokens": lookup.tokens,
        }
    )


def from_line(line: str) -> Lookup:
    """Raises TraceError."""
    try:
        fields = json.loads(line)
        hashes, namespace = bytes.fromhex(fields["block_hashes"]), bytes.fromhex(fields.get("namespace", ""))
        lookup = Lookup(
            float(fields["time"]), hashes, int(fields.get("tokens", 0)), str(fields.get("tenant", "")), namespace
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TraceError(f"{type(error).__name__}: {error}") from error
    if len(hashes) % HASH_BYTES:
        raise TraceError(f"block_hashes: {len(hashes)} bytes are no whole number of {HASH_BYTES}-byte hashes")
    return lookup


def read_trace(path: Path) -> Iterator[Lookup]:
    """Line by line. Raises TraceError, which names the line, and OSError."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_CHARS + 1), ""), start=1):
            try:
                if len(line) > MAX_LINE_CHARS:
                    raise TraceError(f"longer than {MAX_LINE_CHARS} characters")
                yield from_line(line)
            except TraceError as error:
                raise TraceError(f"{path}:{number}: {error}") from error


def write_trace(path: Path, lookups: Iterable[Lookup]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_line(lookup) + "\n" for lookup in lookups)
