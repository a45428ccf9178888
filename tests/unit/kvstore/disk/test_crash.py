"""kill -9 at any point, and files cut off or damaged anywhere: what was committed is found, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes.failing_files import flip
from unit.kvstore.disk.crashing import CAPACITY_BYTES
from unit.kvstore.disk.making import held, opened, payload_of, put
from weir_kvstore.tiers.disk import Fsync
from weir_kvstore.tiers.disk.geometry import GROUP_SLOTS, HEADER_BYTES, header_offset, payload_offset

_TESTS = Path(__file__).parents[3]


@pytest.mark.parametrize("fsync", Fsync)
@pytest.mark.parametrize("without_index", [False, True])
async def test_kill_9_at_any_point(tmp_path: Path, fsync: Fsync, without_index: bool) -> None:
    """Every block whose commit returned and that was not being freed is there; every other one is whole."""
    random_ = random.Random(f"{fsync} {without_index}")
    committed: set[int] = set()
    for start in range(6):
        told = _run_and_kill(tmp_path, random_, first=start * 10**6, fsync=fsync)
        committed |= {int(line[1:]) for line in told if line[0] == "+"}
        freed = {int(line[1:]) for line in told if line[0] == "-"}
        assert any(number >= start * 10**6 for number in committed), "it was killed before it did anything"
        if without_index:
            (tmp_path / "index.log").unlink()
        async with opened(tmp_path, CAPACITY_BYTES, fsync=fsync) as (slots, recovered):
            found = await held(slots, recovered)  # asserts each one's bytes
        assert len(found) == len(set(found))
        assert set(found) >= committed - freed
        # Frees are told before they are asked for, commits after they are done: the rest was under way then.
        assert len(set(found) - (committed - freed)) <= 8
        committed = set(found)


def _run_and_kill(path: Path, random_: random.Random, *, first: int, fsync: Fsync) -> list[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "unit.kvstore.disk.crashing", path, str(random_.random())[2:10], str(first), fsync],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(random_.randint(20, 300))]
    time.sleep(random_.random() / 100)
    child.kill()
    lines += child.stdout.read().splitlines()
    child.stdout.close()
    child.wait()
    return [line.strip() for line in lines if line.strip()[:1] in {"+", "-"} and len(line.strip()) > 1]


async def _filled(path: Path) -> None:
    """Blocks 0 to 69 but for every third; the second group of slots has been begun."""
    async with opened(path, 10**6 * 4) as (slots, _):
        for number in range(70):
            await put(slots, number, number)
        for number in range(0, 70, 3):
            slots.free(number)


_HELD = [number for number in range(70) if number % 3]


async def _found(path: Path) -> list[int]:
    async with opened(path, 10**6 * 4) as (slots, recovered):
        return await held(slots, recovered)


async def test_an_index_that_is_cut_off_anywhere_is_rebuilt_whole(tmp_path: Path) -> None:
    await _filled(tmp_path / "made")
    size = (tmp_path / "made" / "index.log").stat().st_size
    records_end = 64 + 32 * (70 + len(range(0, 70, 3)))
    assert size > records_end
    for cut in (0, 1, 63, 64, 65, 95, 96, 64 + 32 * 70, records_end - 32, records_end - 1, records_end):
        path = shutil.copytree(tmp_path / "made", tmp_path / f"cut-{cut}")
        os.truncate(path / "index.log", cut)
        assert await _found(path) == _HELD, cut
        assert await _found(path) == _HELD, "and it has been written down"


async def test_an_index_with_a_bad_byte_anywhere_is_rebuilt_whole(tmp_path: Path) -> None:
    await _filled(tmp_path / "made")
    records_end = 64 + 32 * (70 + len(range(0, 70, 3)))
    # Every byte of the header and of two records, one of them the last, and some of what follows.
    places = [*range(64), *range(96, 128), *range(records_end - 32, records_end), records_end, records_end + 77]
    for place in places[:: 7 if len(places) > 100 else 1]:
        path = shutil.copytree(tmp_path / "made", tmp_path / f"bad-{place}")
        flip(path / "index.log", place)
        assert await _found(path) == _HELD, place
        shutil.rmtree(path)


@pytest.mark.parametrize("without_index", [False, True])
async def test_a_bad_header_costs_its_own_block_only(tmp_path: Path, without_index: bool) -> None:
    await _filled(tmp_path / "made")
    for byte in range(0, HEADER_BYTES, 23):
        path = shutil.copytree(tmp_path / "made", tmp_path / f"bad-{byte}")
        flip(path / "segment-8192", header_offset(8192, 65) + byte)
        if without_index:
            (path / "index.log").unlink()
        assert await _found(path) == [number for number in _HELD if number != 65], byte


async def test_a_segment_that_is_cut_off_costs_the_blocks_behind_the_cut(tmp_path: Path) -> None:
    await _filled(tmp_path / "made")
    ends = [payload_offset(8192, slot) + 8192 for slot in range(70)]
    for slot, cut in [
        (0, 0),
        (0, HEADER_BYTES - 1),
        (0, ends[0] - 1),
        (1, ends[0]),
        (40, ends[40] - 8192),
        (GROUP_SLOTS, ends[GROUP_SLOTS] - 8193),
        (GROUP_SLOTS + 1, ends[GROUP_SLOTS] + 3),
    ]:
        path = shutil.copytree(tmp_path / "made", tmp_path / f"cut-{cut}")
        os.truncate(path / "segment-8192", cut)
        assert await _found(path) == [number for number in _HELD if number < slot], (slot, cut)


async def test_bad_bytes_of_a_payload_are_left_to_its_checksum(tmp_path: Path) -> None:
    await _filled(tmp_path)
    flip(tmp_path / "segment-8192", payload_offset(8192, 4) + 1234)
    async with opened(tmp_path, 10**6 * 4) as (slots, recovered):
        wrong = next(found for found in recovered if found.record.address.block_hash[-1] == 4)
        assert await slots.read(wrong.block_id, 0, 5000) != payload_of(4)


async def test_an_old_copy_of_the_index_finds_nothing_under_an_old_record(tmp_path: Path) -> None:
    """A log that is whole and not the last: slots that were written over since have other generations."""
    await _filled(tmp_path)
    shutil.copy(tmp_path / "index.log", tmp_path / "old")
    async with opened(tmp_path, 10**6 * 4) as (slots, recovered):
        for found in recovered[:20]:
            slots.free(found.block_id)
        for number in range(100, 115):
            await put(slots, number, number)
    (tmp_path / "old").rename(tmp_path / "index.log")
    assert set(await _found(tmp_path)) <= set(_HELD[20:])
