"""The script `logs.lua`, called: one method for each of its verbs.

    weir-retained:{main}:stream:<name>, :log:<name>, :lease:<name>, :reading:<name>, :key:<key>

Names and keys are hashes, so that no tenant's word stands in one. The store's name is in braces, which Redis Cluster
hashes instead of the whole key: all keys of one store are in one slot, so that a script may touch them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from weir_chassis.redis import refused_or
from weir_router.retained.sharing import Began, Found


@dataclass(frozen=True, slots=True)
class Begin:
    """`key`: hashed, or empty. `fingerprint`: of the request, for whoever comes with the same key."""

    name: str
    kept_ms: int
    request: bytes
    request_id: str
    key: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Append:
    """`state`: of a log that has ended; else empty."""

    name: str
    epoch: int
    kept_ms: int
    position: int
    entries: Sequence[bytes]
    prompt: bytes = b""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Appended:
    """`kept`, `fenced`: another router runs it now, or `gone`."""

    outcome: str
    reader: int = 0
    cancelled: bool = False
    read_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """`reading_ms`: how long its reader counts as one."""

    name: str
    position: int
    reading_ms: int


@dataclass(frozen=True, slots=True)
class TakenOver:
    epoch: int
    request: bytes
    prompt: bytes
    cancelled: bool


class SharedLogs:
    """Raises RedisError, and Refused when the server has no room. The caller sets the time limit of each call."""

    def __init__(self, redis: Redis, store: str, owner: str, lease_ms: int, read_entries: int):
        """`owner`: this router, by a name that no other has ever had. `read_entries`: at most, in one answer."""
        self._redis, self._prefix = redis, f"weir-retained:{{{store}}}:"
        self._owner, self._lease_ms, self._read_entries = owner, lease_ms, read_entries
        self._script = redis.register_script(files(__package__).joinpath("logs.lua").read_text())

    async def begin(self, begin: Begin) -> Began:
        asked = (begin.kept_ms, begin.request, begin.request_id, begin.key, begin.fingerprint)
        answer = await self._call("begin", begin.name, self._owner, self._lease_ms, *asked)
        if answer[0] == b"keyed":
            return Began(False, answer[1].decode(), answer[2].decode(), answer[3])
        return Began(answer[0] == b"begun")

    async def sync(self, appends: Sequence[Append], reads: Sequence[Read]) -> tuple[list[Appended], list[Found]]:
        """All in one round trip, each by itself."""
        calls = [*map(self._append, appends), *map(self._read, reads)]
        answers = await self._pipelined(calls)
        if any(isinstance(answer, NoScriptError) for answer in answers):  # the server has been restarted since
            await self._redis.script_load(self._script.script)
            answers = await self._pipelined(calls)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise refused_or(answer)
        return [_appended(each) for each in answers[: len(appends)]], [_found(each) for each in answers[len(appends) :]]

    async def read(self, read: Read) -> Found:
        (found,) = (await self.sync((), (read,)))[1]
        return found

    async def attend(self, name: str) -> int:
        """It is read here now: the how manieth reader that is. 0: it is gone."""
        return int(await self._call("attend", name))

    async def take_over(self, name: str) -> TakenOver | None:
        """This router runs it now. None: it is over, gone, or run by another."""
        answer = await self._call("take_over", name, self._owner, self._lease_ms)
        return TakenOver(answer[0], answer[1], answer[2], bool(answer[3])) if answer[0] else None

    async def cancel(self, name: str) -> bool:
        """Whoever runs it will hear of it. False: it is gone."""
        return bool(await self._call("cancel", name))

    async def fail(self, name: str, epoch: int) -> None:
        """The next request with its name or its idempotency key begins anew; its last entries are still to come."""
        await self._call("fail", name, self._owner, epoch)

    async def release(self, name: str, epoch: int) -> None:
        """Another router may take it over at once."""
        await self._call("release", name, self._owner, epoch)

    async def forget(self, name: str, epoch: int) -> None:
        await self._call("forget", name, self._owner, epoch)

    def _append(self, append: Append) -> list[Any]:
        sizes = (append.epoch, self._lease_ms, append.kept_ms)
        told = (append.state, append.prompt, append.position)
        return ["append", append.name, self._owner, *sizes, *told, *append.entries]

    def _read(self, read: Read) -> list[Any]:
        return ["read", read.name, read.position, self._read_entries, read.reading_ms]

    async def _call(self, *arguments: str | int | bytes) -> Any:
        try:
            return await self._script([self._prefix], [self._prefix, *arguments])
        except ResponseError as error:
            raise refused_or(error) from error

    async def _pipelined(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for arguments in calls:
                pipeline.evalsha(self._script.sha, 1, self._prefix, self._prefix, *arguments)
            return await pipeline.execute(raise_on_error=False)


def hashed(*words: str) -> str:
    """A name for these words together, 32 hexadecimal digits."""
    return sha256(b"".join(len(word.encode()).to_bytes(4, "big") + word.encode() for word in words)).hexdigest()[:32]


def _appended(answer: Sequence[Any]) -> Appended:
    outcome, *rest = answer
    return Appended(outcome.decode(), rest[0], bool(rest[1]), bool(rest[2])) if rest else Appended(outcome.decode())


def _found(answer: Sequence[Any]) -> Found:
    state, *rest = answer
    return Found(state.decode(), bool(rest[0]), rest[1], rest[2]) if rest else Found(state.decode())
