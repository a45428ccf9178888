from __future__ import annotations

from weir_executor.trtllm.held_prompts import HeldPrompts


class Result:
    aborts = 0

    def abort(self) -> None:
        self.aborts += 1


def test_half_of_the_blocks_are_for_those_who_compute() -> None:
    held = HeldPrompts(total_blocks=20)
    assert held.reserve(1, 6)
    assert held.reserve(1, 6), "another output of the same request"
    assert not held.reserve(2, 5)
    assert held.reserve(3, 4)
    assert held.num_blocks == 0, "they are being computed"
    held.hold(1, [])
    assert held.num_blocks == 6
    held.release(1)
    assert held.reserve(2, 5)


def test_what_is_released_is_told_to_the_engine_once() -> None:
    held, results = HeldPrompts(20), [Result(), Result()]
    held.reserve(1, 4)
    held.hold(1, results)
    assert held.release(1)
    assert not held.release(1)
    assert [result.aborts for result in results] == [1, 1]
    assert held.num_blocks == 0


def test_what_was_never_held_is_given_back_in_silence() -> None:
    held = HeldPrompts(20)
    assert held.reserve(1, 10)
    assert held.release(1)
    assert held.reserve(2, 10)
