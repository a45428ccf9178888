from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from weir_executor.host.loading_log import Loaded, LogTail, newest


def line(done: int, total: int) -> str:
    return json.dumps({"event": "model_loading", "loaded_bytes": done, "total_bytes": total})


def test_the_last_line_that_tells_counts_and_others_may_be_anything() -> None:
    lines = [line(1, 9), "Traceback", line(5, 9), '{"event": "model_loading"}', "model_loading", "{}"]
    assert newest(lines) == Loaded(5, 9)
    assert newest(["serving", ""]) is None


@given(st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8")), max_size=8), st.data())
def test_lines_come_whole_however_the_bytes_are_cut(lines: list[str], data: st.DataObject) -> None:
    whole, tail, found = "".join(f"{each}\n" for each in lines).encode(), LogTail(), list[str]()
    while tail.offset < len(whole):
        count = data.draw(st.integers(1, len(whole) - tail.offset))
        found += tail.lines(whole[tail.offset : tail.offset + count])
    assert found == lines
