"""The server's events against our names: whole blocks, one scope each, and no guess."""

from __future__ import annotations

from typing import Any

import pytest

from weir.kvstore.v1.block_hash import block_hashes
from weir.openengine.v1 import openengine_pb2 as pb
from weir_executor.foreign.salts import private_salt, shared_salt
from weir_executor.openengine.kv_events import EventTranslator
from weir_executor.step_output import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent

ROOT, OTHER = b"r" * 16, b"o" * 16
SIZE, TOKENS = 4, list(range(12))
OURS = block_hashes(ROOT, TOKENS, SIZE)


def named(*numbers: int) -> list[pb.KvBlockHash]:
    return [pb.KvBlockHash(value=bytes([each]), encoding="int64") for each in numbers]


def stored(
    numbers: list[int], tokens: list[int], parent: int | None = None, salt: str = shared_salt(ROOT), **fields: Any
) -> pb.KvEvent:
    told: dict[str, Any] = {"block_size": SIZE, "medium": pb.STORAGE_MEDIUM_GPU, **fields}
    event = pb.BlockStored(block_hashes=named(*numbers), token_ids=tokens, **told)
    if salt:
        event.extra_keys.extend([pb.OpaqueKeyTuple(values=["lora", salt])] * len(numbers))
    if parent is not None:
        event.parent_block_hash.CopyFrom(*named(parent))
    return pb.KvEvent(request_id="r", block_stored=event)


def removed(*numbers: int, medium: pb.StorageMedium.ValueType = pb.STORAGE_MEDIUM_GPU) -> pb.KvEvent:
    return pb.KvEvent(block_removed=pb.BlockRemoved(block_hashes=named(*numbers), medium=medium))


class Told:
    """A translator, and batches in order for each rank."""

    def __init__(self, only_scope: bytes | None = None) -> None:
        self.translator = EventTranslator(SIZE, only_scope)
        self.next: dict[int, int] = {}

    def __call__(self, *events: pb.KvEvent, rank: int = 0, skip: int = 0) -> list[KvEvent]:
        number = self.next.get(rank, 5) + skip
        self.next[rank] = number + 1
        return self.translator.translate(
            pb.KvEventBatch(sequence_number=number, data_parallel_rank=rank, events=events)
        )


def test_a_chain_gets_our_names() -> None:
    told = Told()
    assert told(stored([1, 2], TOKENS[:8])) == [BlockStored(OURS[:2], b"")]
    assert told(stored([3], TOKENS[8:], parent=2)) == [BlockStored(OURS[2:], OURS[1])]
    assert told(removed(3, 99)) == [BlockRemoved(OURS[2:])]
    assert told.translator.names.leading(OURS) == 2


def test_all_may_be_cleared() -> None:
    told = Told()
    told(stored([1], TOKENS[:4]))
    assert told(pb.KvEvent(all_blocks_cleared=pb.AllBlocksCleared())) == [AllBlocksCleared()]


def test_a_gap_makes_all_void_and_ranks_count_for_themselves() -> None:
    told = Told()
    told(stored([1], TOKENS[:4]))
    assert told(stored([1], TOKENS[:4]), rank=1, skip=40) == [], "the same block, on another rank"
    assert told.translator.gaps == 0
    assert told(stored([2], TOKENS[4:8], parent=1), skip=1) == [AllBlocksCleared()]
    assert (len(told.translator.names), told.translator.gaps) == (0, 1)


def test_a_block_that_two_ranks_hold_is_gone_when_both_let_it_go() -> None:
    told = Told()
    told(stored([1], TOKENS[:4]))
    told(stored([1], TOKENS[:4]), rank=1)
    assert told(removed(1)) == []
    assert told(removed(1), rank=1) == [BlockRemoved(OURS[:1])]


def test_a_parent_is_found_on_whichever_medium_it_lies() -> None:
    told = Told()
    told(stored([1], TOKENS[:4], medium=pb.STORAGE_MEDIUM_CPU_PINNED))
    assert told(stored([2], TOKENS[4:8], parent=1)) == [BlockStored(OURS[1:2], OURS[0])]


@pytest.mark.parametrize(
    "event",
    [
        stored([1], TOKENS[:4], block_size=8),
        stored([1], TOKENS[:4], medium=pb.STORAGE_MEDIUM_EXTERNAL),
        stored([1], TOKENS[:4], kv_cache_spec_sliding_window=128),
        stored([1], TOKENS[:4], parent=77),
        stored([1], TOKENS[:3]),
        stored([1], TOKENS[:4], salt=private_salt("a-1")),
        stored([1], TOKENS[:4], salt=""),
    ],
    ids=["another size", "elsewhere", "forgetful layers", "no known parent", "a part", "private", "nobody's"],
)
def test_what_cannot_be_known_is_not_told(event: pb.KvEvent) -> None:
    assert Told()(event) == []


def test_a_scope_comes_by_the_request_where_no_salt_is_told() -> None:
    told = Told()
    told.translator.note_request("r", ROOT)
    assert told(stored([1], TOKENS[:4], salt="")) == [BlockStored(OURS[:1], b"")]
    other = stored([5], TOKENS[4:8], salt="")
    other.request_id = "not ours"
    assert told(other) == []
    told.translator.note_request("r", b"")
    assert told(stored([2], TOKENS[4:8], salt="")) == []


def test_requests_are_forgotten_in_time() -> None:
    told = Told()
    for number in range(5000):
        told.translator.note_request(str(number), ROOT)
    assert len(told.translator._scopes) == 4096


def test_a_server_without_salts_has_one_scope_and_none_for_adapters() -> None:
    told = Told(only_scope=OTHER)
    assert told(stored([1], TOKENS[:4], salt="")) == [BlockStored(block_hashes(OTHER, TOKENS[:4], SIZE), b"")]
    assert told(stored([2], TOKENS[4:8], salt="", lora_name="law")) == []


def test_a_new_stream_begins_from_nothing_with_numbers_of_its_own() -> None:
    told = Told()
    assert told.translator.begin() == []
    told(stored([1], TOKENS[:4]))
    assert told.translator.begin() == [AllBlocksCleared()]
    told.next = {}
    assert told(stored([1], TOKENS[:4])) == [BlockStored(OURS[:1], b"")]
    assert told.translator.gaps == 0
