"""Events come out as they went in, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.errors import WorkerLost
from weir_router.providers.sse import EventStream

_line = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


@given(st.lists(st.lists(_line, min_size=1, max_size=3), max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.data())
def test_any_cut_gives_the_same_events(events: list[list[str]], end: str, data: st.DataObject) -> None:
    text = "".join("".join(f"data: {line}{end}" for line in lines) + end for lines in events)
    raw = (f": a comment{end}event: x{end}id: 1{end}{end}" + text).encode() + b":"  # what is not ended is no event
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    stream, came = EventStream(), list[str]()
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        came += stream.feed(raw[start:stop])
    assert came == ["\n".join(lines) for lines in events]


def test_without_a_blank_and_with_a_byte_order_mark() -> None:
    assert list(EventStream().feed("\ufeffdata:x\n\n".encode())) == ["x"]


def test_an_event_that_does_not_end_is_given_up() -> None:
    stream = EventStream()
    with pytest.raises(WorkerLost, match="1048576"):
        for _ in range(40):
            list(stream.feed(b"data: " + b"x" * 32_768 + b"\n"))
