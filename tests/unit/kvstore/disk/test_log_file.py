from __future__ import annotations

from pathlib import Path

import pytest

from fakes.failing_files import FailingFiles
from weir_kvstore.tiers.disk import log_file
from weir_kvstore.tiers.disk.files import Files
from weir_kvstore.tiers.disk.log import Kind, LiveSlots, LogDamagedError
from weir_kvstore.tiers.disk.log_file import LogFile, read_log


def _commit(slot: int, generation: int) -> log_file.Change:
    return Kind.COMMIT, 4096, slot, generation


def _free(slot: int, generation: int) -> log_file.Change:
    return Kind.FREE, 4096, slot, generation


def _new(path: Path, files: Files | None = None) -> LogFile:
    return LogFile(files or Files(), path, LiveSlots(), epoch=0, next_generation=1)


def _live(path: Path) -> dict[int, int]:
    return {slot: generation for _, slot, generation in read_log(Files(), path).live}


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "index.log"
    log = _new(path)
    assert _live(path) == {}
    log.append([_commit(1, 1), _commit(2, 2)])
    log.append([_free(1, 1), _commit(1, 3)])
    log.sync()
    assert _live(path) == {1: 3, 2: 2}
    left = read_log(Files(), path)
    assert (left.epoch, left.next_generation) == (1, 4)
    log.close()
    LogFile(Files(), path, left.live, epoch=left.epoch, next_generation=left.next_generation).close()
    again = read_log(Files(), path)
    assert (again.epoch, again.next_generation, _live(path)) == (2, 4, {1: 3, 2: 2})


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(LogDamagedError, match="there is none"):
        read_log(Files(), tmp_path / "index.log")
    assert not (tmp_path / "index.log").exists()


def test_it_is_written_anew_when_it_is_mostly_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_SMALL_RECORDS", 100)
    monkeypatch.setattr(log_file, "_STEP_BYTES", 1024)
    path = tmp_path / "index.log"
    log = _new(path)
    longest = 0
    for generation in range(1, 1000):
        log.append([_commit(generation % 7, generation)])
        log.append([_free(generation % 7, generation)] if generation % 3 else [_commit(50, generation)])
        longest = max(longest, path.stat().st_size)
    expected = {slot: generation for slot, generation in _live(path).items() if generation}
    assert 50 in expected
    assert longest < 64 + 32 * 110 + 2 * 1024
    assert read_log(Files(), path).epoch > 10
    assert [file.name for file in tmp_path.iterdir()] == ["index.log"]
    log.close()


@pytest.mark.parametrize("call", ["write", "sync"])
def test_after_a_failure_a_new_file_is_begun(tmp_path: Path, call: str) -> None:
    broken = False
    path = tmp_path / "index.log"
    log = _new(path, FailingFiles(lambda name, _: broken and name == call))
    log.append([_commit(1, 1)])
    broken = True
    with pytest.raises(OSError, match="Input/output"):
        log.append([_commit(2, 2)])
        log.sync()
    with pytest.raises(OSError, match="Input/output"):
        log.append([_commit(2, 2)])
    assert 1 in _live(path), "the old file is there until the new one is whole"
    broken = False
    log.append([_commit(3, 3)])
    assert _live(path) == {1: 1, 3: 3} if call == "write" else {1: 1, 2: 2, 3: 3}
    log.close()


def test_room_that_cannot_be_had_ahead_is_no_failure(tmp_path: Path) -> None:
    path = tmp_path / "index.log"
    log = _new(path, FailingFiles(lambda name, _: name == "allocate", error=28))
    for generation in range(1, 50):
        log.append([_commit(generation, generation)])
    assert len(_live(path)) == 49
    log.close()
