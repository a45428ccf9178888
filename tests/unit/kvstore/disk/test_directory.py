from __future__ import annotations

from pathlib import Path

import pytest

from unit.kvstore.disk.making import opened, put
from weir_kvstore.tiers.disk import DirectoryRefusedError
from weir_kvstore.tiers.disk.directory import Directory


def test_one_process_at_a_time(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "a" / "b")
    with pytest.raises(DirectoryRefusedError, match="in use by another process"):
        Directory(tmp_path / "a" / "b")
    directory.close()
    Directory(tmp_path / "a" / "b").close()


def test_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    Directory(tmp_path).close()
    text = (tmp_path / "FORMAT").read_text()
    (tmp_path / "FORMAT").write_text(text.replace("version 1", "version 2"))
    for _ in range(2):  # the lock is given back
        with pytest.raises(DirectoryRefusedError, match=r"another version \(.*version 2.*empty it"):
            Directory(tmp_path)


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(DirectoryRefusedError, match="give an empty directory"):
        Directory(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_maker_that_was_killed_before_it_wrote_left_an_empty_format(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").touch()
    Directory(tmp_path).close()
    assert "version 1" in (tmp_path / "FORMAT").read_text()


def test_segments_are_told_from_other_files(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    for name in ("segment-8192", "segment-4096", "segment-5000", "segment-", "segment-4096.old", "index.log"):
        (tmp_path / name).touch()
    assert directory.segment_sizes() == [4096, 8192]
    directory.close()


async def test_slots_that_cannot_have_the_directory_leave_it_as_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as (slots, _):
        await put(slots, 1, 1)
        with pytest.raises(DirectoryRefusedError):
            async with opened(tmp_path):
                raise AssertionError
        await put(slots, 2, 2)
    async with opened(tmp_path) as (_, recovered):
        assert len(recovered) == 2
