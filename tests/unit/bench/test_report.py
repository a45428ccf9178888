from __future__ import annotations

import json

import pytest

from bench.report import Figures, print_table


def _figures() -> Figures:
    return Figures(
        ratios={"met": 1.5, "missed": 1.39999, "free": 0.25},
        goals={"met": 1.5, "missed": 1.4, "unmeasured": 1.0},
        measured={"seconds": 0.123456},
        missing={"peer": "no compiler"},
    )


def test_a_goal_is_short_when_its_ratio_is_below_it_or_was_not_measured() -> None:
    assert _figures().short == ["missed", "unmeasured"]


def test_the_summary_is_one_line_of_json_with_all_that_was_found() -> None:
    line = json.dumps(_figures().summary("engine"))
    assert "\n" not in line
    said = json.loads(line)
    assert said["bench"] == "engine"
    assert said["ratios"] == {"met": 1.5, "missed": 1.4, "free": 0.25}
    assert said["goals"] == {"met": 1.5, "missed": 1.4, "unmeasured": 1.0}
    assert said["short"] == ["missed", "unmeasured"]
    assert said["measured"] == {"seconds": 0.1235}
    assert said["missing"] == {"peer": "no compiler"}


def test_cells_give_the_verdict() -> None:
    figures = _figures()
    assert figures.cells("met") == ("1.50", "1.50", "met")
    assert figures.cells("missed") == ("1.40", "1.40", "short")
    assert figures.cells("free") == ("0.25", "", "")


def test_update_takes_all_of_the_others_figures() -> None:
    figures = Figures()
    figures.update(_figures())
    assert figures == _figures()


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", ["row", "ratio"], [["a long name", "1"], ["b", "12.5"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "",
        "Title",
        "  row          ratio",
        "  -----------  -----",
        "  a long name  1",
        "  b            12.5",
        "",
    ]


def test_no_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", ["row"], [])
    assert capsys.readouterr().out == ""
