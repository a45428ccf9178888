"""What the pool tells is what its followers read. The log itself is the chassis' (test_event_log.py)."""

from __future__ import annotations

from weir.inference.v1.kv_event_pb2 import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent
from weir_chassis.kv_events.blocks import MAX_EVENT_BLOCKS, new_log
from weir_executor.kv_events import recorder
from weir_executor.step_output import AllBlocksCleared, BlockRemoved, BlockStored


def name(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_a_steps_events_are_the_logs_in_their_order() -> None:
    log = new_log(1, 100)
    recorder(log)([BlockStored((name(2), name(3)), name(1)), BlockRemoved((name(3),)), AllBlocksCleared()])
    assert log.sequence == 3
    assert log.remembered(1) == [
        KvEvent(stored=BlocksStored(block_hashes=name(2) + name(3), parent_block_hash=name(1), tier="device")),
        KvEvent(removed=BlocksRemoved(block_hashes=name(3), tier="device")),
        KvEvent(cleared=BlocksCleared(tier="device")),
    ]


def test_an_event_of_very_many_blocks_has_several_numbers() -> None:
    log = new_log(1, 10 * MAX_EVENT_BLOCKS)
    chain = [name(i) for i in range(MAX_EVENT_BLOCKS + 1)]
    recorder(log)([BlockStored(chain, b""), BlockRemoved(chain)])
    assert log.sequence == 4
