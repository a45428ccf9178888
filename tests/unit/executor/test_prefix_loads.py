"""Which stored blocks a step writes, and where."""

from __future__ import annotations

from collections.abc import Sequence as Items

import pytest

from contract.engine_contract import hashes, prompt, request
from weir_executor.paged.prefix_loads import PrefixLoads
from weir_executor.paged.sequence import LiveRequest, Sequence, new_sequences

_BLOCK = 4


def _sequence(length: int, stored: Items[bytes], first: int = 0) -> Sequence:
    tokens = prompt(length)
    asked = request(1, tokens, block_hashes=hashes(tokens, _BLOCK))
    live = LiveRequest(
        asked,
        1,
        frozenset(),
        shares_blocks=True,
        submitted_at=0.0,
        stored_blocks=list(stored),
        first_stored_block=first,
    )
    live.sequences = new_sequences(live, _BLOCK)
    live.sequences[0].blocks = list(range(10, 10 + -(-length // _BLOCK)))
    return live.sequences[0]


@pytest.mark.parametrize(
    ("length", "first", "num_known", "loaded"),
    [
        (14, 0, 0, {10: b"a", 11: b"b", 12: b"c"}),
        (14, 0, 2, {12: b"c"}),
        (14, 1, 1, {11: b"a", 12: b"b"}),
        (14, 1, 0, {}),  # a gap
        (12, 0, 0, {10: b"a", 11: b"b"}),  # one token is left to compute
        (14, 0, 3, {}),
    ],
)
def test_they_go_on_where_the_known_prefix_ends(
    length: int, first: int, num_known: int, loaded: dict[int, bytes]
) -> None:
    sequence = _sequence(length, [b"a", b"b", b"c"], first)
    loads = PrefixLoads(len, _BLOCK)
    assert {load.block_id: load.payload for load in loads.add(sequence, num_known)} == loaded
    known = dict(zip(sequence.block_hashes, sequence.blocks, strict=False))
    assert loads.by_hash == {block_hash: block_id for block_hash, block_id in known.items() if block_id in loaded}


def test_what_is_not_sound_ends_them_and_only_what_would_be_loaded_is_looked_at() -> None:
    seen: list[Items[bytes | memoryview]] = []

    def count_usable(blocks: Items[bytes | memoryview]) -> int:
        seen.append(list(blocks))
        return 1

    loads = PrefixLoads(count_usable, _BLOCK)
    assert [load.payload for load in loads.add(_sequence(14, [b"a", b"b", b"c", b"d"]), 1)] == [b"b"]
    assert seen == [[b"b", b"c"]]
    assert len(loads.by_hash) == 1
    loads.begin_step()
    assert not loads.by_hash
