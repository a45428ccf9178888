"""What is told, heard by a mirror, is what the engine holds: on one level or on two."""

from __future__ import annotations

import random

from weir.kvstore.v1.block_hash import block_hashes
from weir_executor.foreign.block_names import BlockNames
from weir_executor.step_output import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent

ROOT, SIZE = b"r" * 16, 4


def hear(mirror: set[bytes], events: list[KvEvent]) -> None:
    for event in events:
        if isinstance(event, BlockStored):
            assert not event.parent_block_hash or event.parent_block_hash in mirror
            assert not mirror & set(event.block_hashes), "told twice"
            mirror |= set(event.block_hashes)
        elif isinstance(event, BlockRemoved):
            assert set(event.block_hashes) <= mirror
            mirror -= set(event.block_hashes)
        else:
            mirror.clear()


def test_a_chain_goes_on_after_its_parent() -> None:
    names, tokens = BlockNames(SIZE), list(range(12))
    first, second, third = block_hashes(ROOT, tokens, SIZE)
    assert names.store([("a", tokens[:4]), ("b", tokens[4:8])], root=ROOT) == [BlockStored([first, second], b"")]
    assert names.store([("c", tokens[8:])], parent=names.find("b")) == [BlockStored([third], second)]
    assert names.leading([first, second, third, b"x"]) == 3
    assert names.leading([b"x", first]) == 0
    assert names.remove(["b", "z"]) == [BlockRemoved([second])]
    assert names.leading([first, second, third]) == 1
    assert names.clear() == [AllBlocksCleared()]
    assert (len(names), names.find("a")) == (0, None)


def test_a_part_of_a_block_ends_what_has_a_name() -> None:
    names = BlockNames(SIZE)
    assert names.store([("a", [1, 2, 3]), ("b", [1, 2, 3, 4])], root=ROOT) == []


def test_what_is_stored_again_is_told_once_and_a_name_that_changes_is_taken_back() -> None:
    names = BlockNames(SIZE)
    (one,), (two,) = block_hashes(ROOT, [1, 2, 3, 4], SIZE), block_hashes(ROOT, [5, 6, 7, 8], SIZE)
    assert names.store([("a", [1, 2, 3, 4])], root=ROOT) == [BlockStored([one], b"")]
    assert names.store([("a", [1, 2, 3, 4])], root=ROOT) == []
    assert names.store([("a", [5, 6, 7, 8])], root=ROOT) == [BlockRemoved([one]), BlockStored([two], b"")]
    assert names.hashes == {two}


def test_a_mirror_of_ten_thousand_random_events_holds_what_the_engine_holds() -> None:
    dice, names, mirror = random.Random(1), BlockNames(SIZE), set[bytes]()
    chains = [[10 * c + i for i in range(3 * SIZE)] for c in range(5)]
    held: set[tuple[int, int, int]] = set()  # level, chain, block
    for _ in range(10_000):
        level, chain = dice.randrange(2), dice.randrange(5)
        if dice.random() < 0.6:
            blocks = [((level, chain, i), chains[chain][i * SIZE : (i + 1) * SIZE]) for i in range(3)]
            hear(mirror, names.store(blocks, root=ROOT))
            held |= {(level, chain, i) for i in range(3)}
        else:
            gone = (level, chain, 2)
            hear(mirror, names.remove([gone]))
            held.discard(gone)
    wanted = {block_hashes(ROOT, chains[chain], SIZE)[i] for _, chain, i in held}
    assert mirror == names.hashes == wanted
