"""The script `books.lua`, called: one method for each of its verbs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import islice
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from weir_chassis.redis import refused_or
from weir_kvstore.record import Bytes, Record
from weir_kvstore.tenants import Quotas
from weir_kvstore.tier import Counters
from weir_kvstore.tiers.redis.layout import Keys, member

# Of a put that nobody goes on with: many times a put's own time limit.
_LAPSE_SECONDS: Final = 60
# Members in one call of the script: some milliseconds of a server that serves one caller at a time.
MAX_MEMBERS: Final = 512
# Tenants whose bytes are reported, the first that this process puts for, and whose weights are told, the first named.
_MAX_TENANTS: Final = 256


@dataclass(frozen=True, slots=True)
class Rules:
    """What all hosts that share a store should be told alike: each keeps to its own."""

    capacity_bytes: int  # payloads, of all hosts together; each block takes some 800 bytes besides
    policy: str = "lru"  # lru, lfu or fifo
    ttl_seconds: float | None = None  # of what is put from now on
    quotas: Quotas = field(default_factory=Quotas)

    @property
    def shares(self) -> str:
        """Weights, as the script reads them."""
        named = {tenant: quota.share for tenant, quota in islice(self.quotas.by_tenant.items(), _MAX_TENANTS)}
        return json.dumps({"named": named, "others": self.quotas.others.share})


class Books:
    """Keeps the counters, and what the last answer said of the whole store."""

    def __init__(self, redis: Redis, keys: Keys, rules: Rules, counters: Counters) -> None:
        self._redis, self._keys, self._counters = redis, keys, counters
        self.rules = rules
        self._script = redis.register_script(files(__package__).joinpath("books.lua").read_text())
        self.bytes = self.blocks = 0
        self.tenant_bytes: dict[str, int] = {}

    async def reserve(self, token: str, record: Record) -> str:
        """`present`, `refused`, or `reserved`: charged, and to be committed."""
        if len(self.tenant_bytes) < _MAX_TENANTS:
            self.tenant_bytes.setdefault(record.tenant, 0)
        max_bytes = self.rules.quotas.of(record.tenant).max_bytes
        wanted = (token, member(record.address), record.size_bytes, record.tenant)
        quota = -1 if max_bytes is None else max_bytes
        return str(await self._call("reserve", *wanted, quota, _LAPSE_SECONDS, self.rules.shares))

    async def stage_and_commit(self, token: str, record: Record, value: Bytes) -> str:
        """In one round trip. `stored`, `present`, or `lost`: the reservation or what was staged is gone."""
        staged, sizes = self._keys.staged(token), (len(value), int(1000 * (self.rules.ttl_seconds or 0)))
        parent = record.parent_block_hash.hex() or "-"
        commit = self._arguments("commit", token, member(record.address), parent, *sizes)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(staged, value, ex=_LAPSE_SECONDS)
            pipeline.evalsha(self._script.sha, len(self._keys.books), *self._keys.books, *commit)
            staging, answer = await pipeline.execute(raise_on_error=False)
        if isinstance(answer, NoScriptError):  # the server has been restarted since
            answer = await self._run(commit)
        for outcome in (staging, answer):
            if isinstance(outcome, ResponseError):
                raise refused_or(outcome)
        return str(self._noted(answer))

    async def match(self, namespace: bytes, block_hashes: Sequence[bytes]) -> int:
        return int(await self._call("match", namespace.hex(), b"".join(block_hashes).hex()))

    async def touch(self, members: Sequence[str]) -> None:
        """They were used just now."""
        await self._call("touch", *members)

    async def remove(self, members: Sequence[str]) -> int:
        return int(await self._call("remove", *members))

    async def settle(self, members: Sequence[str]) -> None:
        """Makes the books agree with what is there, for these."""
        await self._call("settle", *members)

    async def count_tenants(self) -> None:
        """Asks for `tenant_bytes` of those that this process has put for."""
        tenants = list(self.tenant_bytes)
        if tenants:
            counted = await self._redis.hmget(self._keys.books[1], [f"tenant:{tenant}" for tenant in tenants])
            self.tenant_bytes = {tenant: int(count or 0) for tenant, count in zip(tenants, counted, strict=True)}

    async def _call(self, verb: str, *arguments: str | int) -> Any:
        return self._noted(await self._run(self._arguments(verb, *arguments)))

    async def _run(self, arguments: Sequence[str | int]) -> Any:
        try:
            return await self._script(self._keys.books, arguments)
        except ResponseError as error:
            raise refused_or(error) from error

    def _arguments(self, verb: str, *arguments: str | int) -> list[str | int]:
        return [self._keys.prefix, self.rules.policy, self.rules.capacity_bytes, verb, *arguments]

    def _noted(self, answer: Sequence[Any]) -> Any:
        outcome, self.bytes, self.blocks, evicted, expired, corrupt = answer
        self._counters.evicted += evicted
        self._counters.expired += expired
        self._counters.corrupt += corrupt
        return outcome.decode() if isinstance(outcome, bytes) else outcome
