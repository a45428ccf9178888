from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import Field

from weir_chassis.followed_file import FollowedFile, read_config, reread_on_hangup
from weir_chassis.testing import VirtualClock
from weir_chassis.toml_config import ConfigError, Table, parse_toml


class Config(Table):
    limit: int = Field(default=0, ge=0)
    name: str = ""


def parse(text: str) -> Config:
    return parse_toml(Config, text)


class Followed:
    """A file, and what became of it. Its name cannot change."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.applied, self.refuses = path, list[Config](), list[str]()
        path.write_text(text)
        self.file = FollowedFile(path, parse, read_config(path, parse), self._apply)

    def _apply(self, config: Config) -> tuple[Config, Sequence[str]]:
        self.applied.append(config)
        return config.model_copy(update={"name": ""}), self.refuses

    async def write(self, text: str) -> None:
        self.path.write_text(text)
        self.file.forget()  # a clock that is too coarse would hide a change within its tick
        await self.file.look()


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path / "tiers.toml", "limit = 1")


async def test_a_change_is_put_in_force(followed: Followed) -> None:
    await followed.write("limit = 2")
    assert [config.limit for config in followed.applied] == [2]
    assert (followed.file.in_force.limit, followed.file.error) == (2, "")


async def test_nothing_happens_without_a_change(followed: Followed) -> None:
    await followed.file.look()
    await followed.file.look()
    assert not followed.applied


@pytest.mark.parametrize("text", ["limit = -1", "nonsense", "x" * (1 << 21), "\udcff"])
async def test_an_invalid_file_leaves_the_old_in_force(followed: Followed, text: str) -> None:
    followed.path.write_bytes(text.encode(errors="surrogateescape"))
    await followed.file.look()
    assert not followed.applied
    assert followed.file.in_force.limit == 1
    assert followed.file.error
    await followed.write("limit = 1")
    assert not followed.file.error


async def test_a_file_that_is_gone_leaves_the_old_in_force(followed: Followed) -> None:
    followed.path.unlink()
    await followed.file.look()
    assert "No such file" in followed.file.error
    assert followed.file.in_force.limit == 1
    await followed.write("limit = 3")
    assert (followed.file.in_force.limit, followed.file.error) == (3, "")


async def test_what_cannot_change_is_told_until_the_file_is_another(followed: Followed) -> None:
    followed.refuses = ["name: the old one stays"]
    await followed.write('limit = 2\nname = "new"')
    assert followed.file.error == "name: the old one stays"
    assert followed.file.in_force == Config(limit=2)
    await followed.file.look()
    assert followed.file.error, "nothing is tried again for the same file"
    followed.refuses = []
    await followed.write("limit = 2")
    assert not followed.file.error


async def test_it_is_looked_at_from_time_to_time(followed: Followed) -> None:
    clock = VirtualClock()
    following = asyncio.create_task(followed.file.follow(clock, poll_seconds=1))
    followed.path.write_text("limit = 12345")
    while not followed.applied:
        await clock.advance(1)
        await asyncio.sleep(0.001)
    following.cancel()
    assert followed.file.in_force.limit == 12345


async def test_a_hangup_has_it_read_again(followed: Followed) -> None:
    await followed.file.look()
    stat = followed.path.stat()
    followed.path.write_text("limit = 9")
    os.utime(followed.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as coarse a clock as can be
    await followed.file.look()
    assert not followed.applied
    with reread_on_hangup(followed.file):
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        await followed.file.look()
    assert followed.file.in_force.limit == 9


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "none.toml", parse)
