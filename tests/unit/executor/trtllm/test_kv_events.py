"""The engine's events against a model of what it holds: our hashes, whole blocks, one scope each, and no guess."""

from __future__ import annotations

import random
from typing import Any

from fakes.trtllm.pool import Held, Pool
from weir.kvstore.v1.block_hash import block_hashes
from weir_executor.foreign.salts import private_salt, shared_salt
from weir_executor.step_output import AllBlocksCleared, BlockRemoved, BlockStored
from weir_executor.trtllm.kv_events import EventTranslator

ROOT, OTHER = b"r" * 16, b"o" * 16
SIZE = 4


def event(number: int, **data: Any) -> dict[str, Any]:
    return {"event_id": number, "window_size": 0, "data": data}


def block(engine_hash: int, tokens: list[int], salt: str = shared_salt(ROOT)) -> dict[str, Any]:
    told = [{"token_id": token, "token_extra_id": 0} for token in tokens]
    return {"block_hash": engine_hash, "tokens": told, "cache_level": 0, "priority": 35, "cache_salt": salt}


def stored(number: int, parent: int | None, *blocks: dict[str, Any]) -> dict[str, Any]:
    return event(number, type="stored", parent_hash=parent, blocks=list(blocks))


def test_a_chain_gets_our_names() -> None:
    translator, tokens = EventTranslator(SIZE), list(range(12))
    first, second, third = block_hashes(ROOT, tokens, SIZE)
    assert translator.translate(event(0, type="created", num_blocks_per_cache_level=[9, 0])) == []
    told = translator.translate(stored(1, None, block(11, tokens[:4]), block(12, tokens[4:8])))
    assert told == [BlockStored([first, second], b"")]
    assert translator.translate(stored(2, 12, block(13, tokens[8:]))) == [BlockStored([third], second)]
    assert translator.translate(event(3, type="removed", block_hashes=[13, 99])) == [BlockRemoved([third])]
    assert (first in translator.names, third in translator.names, len(translator.names)) == (True, False, 2)


def test_what_has_no_scope_is_nobody_elses_business() -> None:
    translator = EventTranslator(SIZE)
    for number, salt in enumerate((private_salt(3), None, "z" * 32, 7)):
        assert translator.translate(stored(number, None, block(number, [1, 2, 3, 4], salt))) == []  # type: ignore[arg-type]
    assert translator.translate(stored(4, 0, block(9, [1, 2, 3, 4]))) == [], "nor what goes on after it"


def test_parts_of_blocks_end_what_can_be_told() -> None:
    translator, tokens = EventTranslator(SIZE), list(range(8))
    told = translator.translate(stored(1, None, block(1, tokens[:4]), block(2, tokens[4:7]), block(3, tokens[4:])))
    assert told == [BlockStored(block_hashes(ROOT, tokens[:4], SIZE), b"")]


def test_a_gap_makes_all_void() -> None:
    translator = EventTranslator(SIZE)
    translator.translate(stored(1, None, block(1, [1, 2, 3, 4])))
    told = translator.translate(stored(3, 1, block(2, [5, 6, 7, 8])))
    assert told == [AllBlocksCleared()], "and what it goes on after is not known any more"
    assert (len(translator.names), translator.gaps) == (0, 1)


def test_ranks_of_their_own_count_by_themselves() -> None:
    """With attention data parallelism each has blocks, hashes and numbers of its own."""
    translator, tokens = EventTranslator(SIZE), list(range(8))
    first, second = block_hashes(ROOT, tokens, SIZE)
    for rank in (0, 1):
        told = stored(1, None, block(11, tokens[:4]))
        events = translator.translate({**told, "attention_dp_rank": rank})
        assert events == ([BlockStored([first], b"")] if not rank else [])
    on = {**stored(2, 11, block(12, tokens[4:])), "attention_dp_rank": 1}
    assert translator.translate(on) == [BlockStored([second], first)]
    gone = event(2, type="removed", block_hashes=[11, 12])
    assert translator.translate({**gone, "attention_dp_rank": 0}) == []
    assert translator.translate({**event(3, type="removed", block_hashes=[12]), "attention_dp_rank": 1}) == [
        BlockRemoved([second])
    ]
    assert translator.gaps == 0


def test_only_the_largest_window_counts() -> None:
    translator = EventTranslator(SIZE)
    small = {**stored(1, None, block(1, [1, 2, 3, 4])), "window_size": 128}
    assert len(translator.translate(small)) == 1
    large = {**stored(2, None, block(2, [1, 2, 3, 4])), "window_size": 4096}
    cleared, again = translator.translate(large)
    assert (cleared, isinstance(again, BlockStored)) == (AllBlocksCleared(), True)
    assert translator.translate({**event(3, type="removed", block_hashes=[2]), "window_size": 128}) == []


def test_one_block_on_two_levels_is_one_block() -> None:
    translator = EventTranslator(SIZE)
    assert len(translator.translate(stored(1, None, block(1, [1, 2, 3, 4])))) == 1
    assert translator.translate(stored(2, None, block(2, [1, 2, 3, 4]))) == []
    assert translator.translate(event(3, type="removed", block_hashes=[1])) == []
    assert len(translator.translate(event(4, type="removed", block_hashes=[2]))) == 1


def test_a_thousand_prompts_leave_exactly_what_the_pool_holds() -> None:
    dice, pool, translator = random.Random(3), Pool(40, SIZE, reuse=True, max_events=10_000), EventTranslator(SIZE)
    names: dict[int, bytes] = {}
    for _ in range(1000):
        root, start = dice.choice((ROOT, OTHER)), dice.randrange(6)
        tokens = [start * 100 + i for i in range(dice.randint(1, 40))]
        salt = shared_salt(root)
        names.update(zip(pool.chain(tokens, salt, 0), block_hashes(root, tokens, SIZE), strict=True))
        found = pool.admit(tokens, 4, salt, 0)
        if found is not None:
            held: Held = found[0]
            pool.store(tokens, salt, 0)
            pool.release(held)
        for each in pool.events():
            translator.translate(each)
    assert translator.names.hashes == {names[engine_hash] for engine_hash in pool._cached}
    assert translator.gaps == 0
