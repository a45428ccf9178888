"""A kvstore that tells every lie about blocks but the one that nobody can see: right checksums of wrong bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from unit.executor.store_double import StoreDouble
from weir.kvstore.v1 import kvstore_pb2 as kv
from weir_chassis.errors import LeaseExpired, NotFound, WorkerLost

Pieces = list[kv.GetBlocksResponse]


class LyingStore(StoreDouble):
    """Honest until a test sets one of the lies; `be_honest` takes them all back."""

    def __init__(self) -> None:
        super().__init__()
        self.be_honest()

    def be_honest(self) -> None:
        self.told: Callable[[Pieces], Sequence[kv.GetBlocksResponse | Exception | None]] = list
        self.said: Callable[[kv.MatchPrefixResponse], None] = lambda _: None
        self.hangs: frozenset[str] = frozenset()  # RPCs that never answer
        self.fails: dict[str, Exception] = {}

    async def MatchPrefix(self, request: kv.MatchPrefixRequest, context: Any) -> kv.MatchPrefixResponse:
        response = await super().MatchPrefix(request, context)
        await self._misbehave("match")  # the lease is held by then
        self.said(response)
        return response

    async def GetBlocks(self, request: kv.GetBlocksRequest, context: Any) -> AsyncIterator[kv.GetBlocksResponse]:
        await self._misbehave("get")
        pieces = [piece async for piece in super().GetBlocks(request, context)]
        for piece in self.told(pieces):
            if piece is None:
                await asyncio.Event().wait()
            elif isinstance(piece, Exception):
                raise piece
            else:
                yield piece

    async def ReleaseLease(self, request: kv.ReleaseLeaseRequest, context: Any) -> kv.ReleaseLeaseResponse:
        response = await super().ReleaseLease(request, context)
        await self._misbehave("release")
        return response

    async def PutBlocks(
        self, request_iterator: AsyncIterator[kv.PutBlocksRequest], context: Any
    ) -> kv.PutBlocksResponse:
        await self._misbehave("put")
        return await super().PutBlocks(request_iterator, context)

    async def _misbehave(self, rpc: str) -> None:
        if rpc in self.hangs:
            await asyncio.Event().wait()
        if rpc in self.fails:
            raise self.fails[rpc]


def changed(piece: kv.GetBlocksResponse, **fields: Any) -> kv.GetBlocksResponse:
    copy = kv.GetBlocksResponse()
    copy.CopyFrom(piece)
    for name, value in fields.items():
        setattr(copy, name, value)
    return copy


def _at(index: int, change: Callable[[kv.GetBlocksResponse], Any]) -> Callable[[Pieces], Any]:
    """All pieces, with one changed, or replaced by several."""

    def told(pieces: Pieces) -> list[Any]:
        new = change(pieces[index])
        return [*pieces[:index], *(new if isinstance(new, list) else [new]), *pieces[index + 1 :]]

    return told


def _not_finite(piece: kv.GetBlocksResponse) -> kv.GetBlocksResponse:
    """Numbers that are none, and their own right checksum."""
    chunk = b"\xff" * len(piece.chunk)
    return changed(piece, chunk=chunk, checksum=xxh3_64_intdigest(chunk))


# What it sends instead of six right blocks, and how many of them are used.
LIES: dict[str, tuple[Callable[[Pieces], Any], int]] = {
    "a flipped bit": (_at(2, lambda p: changed(p, chunk=bytes([p.chunk[0] ^ 1]) + p.chunk[1:])), 2),
    "another checksum": (_at(3, lambda p: changed(p, checksum=p.checksum ^ 1)), 3),
    "no checksum": (_at(0, lambda p: changed(p, checksum=0)), 0),
    "another hash": (_at(1, lambda p: changed(p, block_hash=b"x" * 16)), 1),
    "no hash": (_at(1, lambda p: changed(p, block_hash=b"")), 1),
    "blocks swapped": (lambda p: [p[0], p[2], p[1], *p[3:]], 1),
    "bytes swapped": (lambda p: [p[0], changed(p[1], chunk=p[2].chunk), *p[2:]], 1),
    "one left out": (lambda p: [*p[:2], *p[3:]], 2),
    "one twice": (lambda p: [*p[:2], p[1], *p[2:]], 2),
    "one too many": (lambda p: [*p, p[5]], 6),
    "cut short": (_at(4, lambda p: changed(p, chunk=p.chunk[:-1])), 4),
    "cut short and said so": (_at(4, lambda p: changed(p, chunk=p.chunk[:-1], payload_bytes=len(p.chunk) - 1)), 4),
    "too long": (_at(4, lambda p: changed(p, chunk=p.chunk + b"x")), 4),
    "too long and said so": (_at(4, lambda p: changed(p, chunk=p.chunk + b"x", payload_bytes=len(p.chunk) + 1)), 4),
    "half of one": (lambda p: [*p[:3], changed(p[3], chunk=p[3].chunk[:100])], 3),
    "the second half first": (_at(2, lambda p: [changed(p, chunk=p.chunk[100:], offset=100)]), 2),
    "pieces without end": (_at(2, lambda p: [changed(p, chunk=b"")] * 50), 2),
    "an end before the end": (lambda p: p[:3], 3),
    "nothing": (lambda _: [], 0),
    "no numbers": (_at(3, _not_finite), 3),
    "places that were not asked for": (
        lambda p: [*p[:2], kv.GetBlocksResponse(placed=kv.PlacedBlocks(offsets=[0], payload_bytes=[64]))],
        2,
    ),
    "a lease that lapsed midway": (lambda p: [*p[:3], LeaseExpired("lease")], 3),
    "a lease that it forgot": (lambda _: [NotFound("lease")], 0),
    "a death midway": (lambda p: [*p[:5], WorkerLost("gone")], 5),
}
# Where it stops and says nothing more, and how many blocks are used.
STALLS: dict[str, tuple[Callable[[Pieces], Any], int]] = {
    "before the first": (lambda p: [None, *p], 0),
    "midway": (lambda p: [*p[:4], None, *p[4:]], 4),
    "before the last": (lambda p: [*p[:5], None, p[5]], 5),
}
