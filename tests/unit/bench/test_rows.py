from __future__ import annotations

from itertools import product

import pytest

from bench.rows import ROWS, Row, in_turn, salt, worth_another_round
from bench.workload import WORKLOADS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_names_workloads_that_there_are(row: Row) -> None:
    assert {row.workload, row.before or row.workload, row.less or row.workload} <= WORKLOADS.keys()


def test_no_two_measurements_have_the_same_prompts() -> None:
    salts = [salt(row, round_) for row, round_ in product(ROWS, range(5))]
    assert len(set(salts)) == len(salts)


def test_rounds_go_forth_and_back() -> None:
    assert in_turn(["a", "b", "c"], 0) == ["a", "b", "c"]
    assert in_turn(["a", "b", "c"], 1) == ["c", "b", "a"]
    assert in_turn(["a", "b", "c"], 2) == ["a", "b", "c"]


def test_only_who_could_be_best_is_measured_again() -> None:
    times = {"weir": [9.0], "near": [1.9, 2.5], "far": [2.1], "best": [1.0, 3.0], "new": []}
    again = {name for name in times if worth_another_round(name, times, {"weir"})}
    assert again == {"weir", "near", "best", "new"}
    assert worth_another_round("weir", {}, {"weir"})
