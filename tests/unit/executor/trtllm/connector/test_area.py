"""Both sides of the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.executor.trtllm.connector.making import BLOCK_BYTES, HASHES, ROOT, new_area, prefix
from weir_chassis.errors import Unsupported
from weir_executor.request import StoredPrefix
from weir_executor.trtllm.connector.area import Area
from weir_executor.trtllm.connector.area_view import AreaView
from weir_executor.trtllm.connector.layout import layout_of

LAYOUT = layout_of((9, 2, 2, 2), "torch.uint8", 1, "auto")


@pytest.fixture
def area(tmp_path: Path) -> Area:
    return new_area(tmp_path)


def lease(view: AreaView, name: str = "1-0", computed: int = 0) -> bool:
    return view.lease(name, view.staged(), HASHES, computed=computed, most=5) is not None


def test_what_is_staged_is_found_leased_read_and_gone(area: Area) -> None:
    view = AreaView(area.path)
    name = area.stage(prefix(1, 3), HASHES)
    assert name is not None
    assert list(view.staged()) == [name]
    assert area.staged_bytes == 2 * BLOCK_BYTES
    assert not lease(view), "it begins later"
    assert lease(view, computed=1)
    area.drop(name)
    assert (list(view.staged()), area.staged_bytes) == ([], 0)
    assert bytes(view.open("1-0")) == b"\x01" * BLOCK_BYTES + b"\x02" * BLOCK_BYTES
    opened = view.open("1-0")
    view.release("1-0")
    assert opened[0] == 1, "whoever has it open reads it to its end"
    with pytest.raises(OSError, match="1-0"):
        view.open("1-0")
    view.release("1-0")


def test_one_that_goes_at_that_moment_is_passed_over_for_the_next(area: Area) -> None:
    view = AreaView(area.path)
    short, long = area.stage(prefix(0, 2), HASHES), area.stage(prefix(0, 4), HASHES)
    assert long is not None
    staged = view.staged()
    area.drop(long)
    assert view.lease("1-0", staged, HASHES, computed=0, most=5) == short


def test_there_is_no_more_of_it_than_was_said(tmp_path: Path) -> None:
    area = new_area(tmp_path, max_bytes=3 * BLOCK_BYTES)
    name = area.stage(prefix(0, 2), HASHES)
    assert name is not None
    assert area.stage(prefix(0, 2), HASHES) is None
    area.drop(name)
    assert area.stage(prefix(0, 3), HASHES) is not None


def test_nobody_sees_a_part_of_one_and_a_failure_leaves_nothing(area: Area) -> None:
    view, seen = AreaView(area.path), []

    class Blocks(list[bytes]):
        """Looked at once for its size, and once to be written."""

        looks = 0

        def __iter__(self) -> Iterator[bytes]:
            self.looks += 1
            yield b"x" * BLOCK_BYTES
            if self.looks == 2:
                seen.append(list(view.staged()))
                raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        area.stage(StoredPrefix(0, Blocks([b"x", b"y"])), HASHES)
    assert seen == [[]]
    assert (area.staged_bytes, [each.name for each in area.path.iterdir() if each.is_file()]) == (0, ["owner"])


def test_leases_that_were_forgotten_end_and_younger_ones_do_not(area: Area) -> None:
    view = AreaView(area.path)
    area.stage(prefix(0, 2), HASHES)
    assert lease(view)
    made = os.stat(area.path / "leases/1-0").st_ctime
    assert area.sweep(made + 599) == 1
    assert area.sweep(made + 601) == 0
    with pytest.raises(OSError, match="1-0"):
        view.open("1-0")


def test_it_is_for_nobody_else_and_goes_with_its_owner(area: Area) -> None:
    assert stat.S_IMODE(area.path.stat().st_mode) == 0o700
    area.stage(prefix(0, 2), HASHES)
    area.close()
    assert not area.path.exists()
    area.close()


def test_what_a_killed_service_left_is_removed_by_the_next_and_what_is_alive_is_not(tmp_path: Path) -> None:
    dead, alive = new_area(tmp_path), new_area(tmp_path)
    dead.stage(prefix(0, 2), HASHES)
    assert dead._owner is not None
    os.close(dead._owner)  # as its process's end does
    (tmp_path / "weir-connector-half-made").mkdir()
    new = new_area(tmp_path)
    left = {alive.path.name, new.path.name, "weir-connector-half-made"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_too_little_memory_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=f"trtllm_staging_dir {tmp_path} has .* fewer than kvstore_load_bytes"):
        new_area(tmp_path, max_bytes=1 << 62)
    assert list(tmp_path.iterdir()) == []


def test_what_is_dropped_when_the_folder_is_gone_is_gone_too(area: Area) -> None:
    name = area.stage(prefix(0, 2), HASHES)
    assert name is not None
    area.close()
    area.drop(name)
    assert area.staged_bytes == 0
    area.drop(name)
    assert area.staged_bytes == 0, "twice is once"


def test_scopes_are_known_by_the_numbers_of_their_salts(area: Area) -> None:
    def number(salt: str) -> int:
        return int(salt[:2], 16)

    view = AreaView(area.path, number)
    assert view.root_of(0) is None
    area.note_scope(ROOT)
    assert view.root_of(0) == ROOT
    other = bytes([7]) * 16
    area.note_scope(other)
    assert view.root_of(7) == other
    assert AreaView(area.path).root_of(7) is None, "nobody knows the numbers"


def test_two_scopes_of_one_number_are_neither(area: Area) -> None:
    area.note_scope(ROOT)
    area.note_scope(bytes(16))
    assert AreaView(area.path, lambda _: 5).root_of(5) is None


def test_scopes_beyond_the_bound_are_not_noted(area: Area, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weir_executor.trtllm.connector.area._MAX_SCOPES", 1)
    area.note_scope(ROOT)
    area.note_scope(ROOT)
    area.note_scope(bytes(16))
    assert os.listdir(area.path / "scopes") == [ROOT.hex()]


def test_the_layout_is_what_all_ranks_have_told(area: Area) -> None:
    AreaView(area.path).publish(0, LAYOUT)
    assert area.layout(1) == LAYOUT
    with pytest.raises(Unsupported, match="rank 1"):
        area.layout(2)
