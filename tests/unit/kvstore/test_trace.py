from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from unit.kvstore.making import NAMESPACE, name
from weir.kvstore.v1.kvstore_pb2 import MatchPrefixRequest
from weir_chassis.testing import VirtualClock
from weir_kvstore.replay.recorder import TraceRecorder
from weir_kvstore.replay.trace import Lookup, TraceError, from_line, read_trace, to_line, write_trace

LOOKUPS = st.builds(
    Lookup,
    st.floats(0, 2e9).map(lambda seconds: round(seconds, 6)),
    st.integers(0, 5).flatmap(lambda blocks: st.binary(min_size=16 * blocks, max_size=16 * blocks)),
    st.integers(0, 10**6),
    st.text(max_size=5),
    st.binary(min_size=16, max_size=16) | st.just(b""),
)


@given(LOOKUPS)
def test_a_line_is_read_as_it_was_written(lookup: Lookup) -> None:
    assert "\n" not in to_line(lookup)
    assert from_line(to_line(lookup)) == lookup


def test_a_trace_from_elsewhere_may_leave_out_what_it_does_not_know() -> None:
    lookup = from_line('{"time": 1, "block_hashes": "' + "0f" * 16 + '"}')
    assert (lookup.time, lookup.chain, lookup.tokens, lookup.tenant) == (1.0, [b"\x0f" * 16], 0, "")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("nonsense", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"time": 1}', "block_hashes"),
        ('{"time": 1, "block_hashes": "0"}', "ValueError"),
        ('{"time": 1, "block_hashes": "00"}', "no whole number of 16-byte hashes"),
    ],
)
def test_what_is_no_trace_is_told_with_its_line(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, [Lookup(1.0, name(1))])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(TraceError, match=rf"trace.jsonl:2: .*{problem}"):
        list(read_trace(path))


def asked(hashes: bytes, block_size: int = 16, *, leases: bool = True) -> MatchPrefixRequest:
    duration = None if leases else Duration()
    return MatchPrefixRequest(namespace=NAMESPACE, block_hashes=hashes, block_size=block_size, lease_duration=duration)


def recorder(path: Path, max_bytes: int = 10_000) -> TraceRecorder:
    return TraceRecorder(path, max_bytes, VirtualClock())


async def test_what_was_asked_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    taken = recorder(path)
    taken.record(asked(name(1) + name(2)))
    await taken.flush()
    taken.record(asked(name(3)))
    taken.record(asked(name(4), leases=False))
    await taken.flush()
    await taken.flush()
    first, second = read_trace(path)
    assert (first.namespace, first.chain, first.tokens) == (NAMESPACE, [name(1), name(2)], 32)
    assert (second.chain, taken.dropped) == ([name(3)], 0)


async def test_two_files_are_kept_and_no_more_bytes(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    taken = recorder(path, max_bytes=1000)
    for number in range(100):
        taken.record(asked(name(number)))
        if number % 7 == 0:
            await taken.flush()
    await taken.flush()
    before, now = (tmp_path / "trace.jsonl.1"), path
    assert sorted(file.name for file in tmp_path.iterdir()) == ["trace.jsonl", "trace.jsonl.1"]
    assert max(before.stat().st_size, now.stat().st_size) <= 1000
    kept = [lookup.chain[0] for lookup in [*read_trace(before), *read_trace(now)]]
    assert kept == [name(number) for number in range(100 - len(kept), 100)]
    assert len(kept) > 5


async def test_a_disk_that_fails_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "later" / "trace.jsonl"
    taken = recorder(path)
    taken.record(asked(name(1)))
    await taken.flush()
    assert taken.dropped == 1
    path.parent.mkdir()
    taken.record(asked(name(2)))
    await taken.flush()
    assert [lookup.chain for lookup in read_trace(path)] == [[name(2)]]


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    taken = recorder(tmp_path / "trace.jsonl", max_bytes=1 << 30)
    for _ in range(5):
        taken.record(asked(bytes(1 << 20)))
    assert taken.dropped == 3
    await taken.flush()
    taken.record(asked(bytes(1 << 20)))
    assert taken.dropped == 3


async def test_it_writes_every_second(tmp_path: Path) -> None:
    clock, path = VirtualClock(), tmp_path / "trace.jsonl"
    taken = TraceRecorder(path, 1000, clock)
    running = asyncio.create_task(taken.run())
    taken.record(asked(name(1)))
    while not path.exists():
        await clock.advance(1)
        await asyncio.sleep(0.001)
    running.cancel()
