"""Puts, commits and frees at random until it is killed, and says on its standard output what is done: `python -m`.

`+7` block 7 is committed; `-7` it is about to be freed; `0` its directory is open.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from unit.kvstore.disk.making import payload_of, record_of
from weir_chassis.clock import SystemClock
from weir_kvstore.tiers.disk import Fsync, SegmentSlots

CAPACITY_BYTES = 400_000  # some 40 blocks: most puts write over what was freed
SIZES = (900, 4096, 9000, 20_000)


def size_of(number: int) -> int:
    return SIZES[number * 7 % len(SIZES)]


async def put_and_free(path: Path, seed: int, first: int, fsync: Fsync) -> None:
    random_ = random.Random(seed)
    slots = SegmentSlots(path, CAPACITY_BYTES, SystemClock(), fsync=fsync)
    recovered = await slots.recover()
    print("0", flush=True)
    held = {found.block_id: int.from_bytes(found.record.address.block_hash, "big") for found in recovered}
    await asyncio.gather(*(_work(slots, random_, held, range(first + worker, 10**9, 4)) for worker in range(4)))


async def _work(slots: SegmentSlots, random_: random.Random, held: dict[int, int], numbers: range) -> None:
    for number in numbers:
        block_id = 10**6 + number
        while not slots.claim(block_id, size_of(number)):
            if not held:
                await asyncio.sleep(0)
                continue
            victim = random_.choice(list(held))
            print(f"-{held.pop(victim)}", flush=True)
            slots.free(victim)
        await _write(slots, random_, block_id, number)
        if random_.random() < 0.1:
            slots.free(block_id)  # a put that ended before its commit
            continue
        await slots.commit(block_id, record_of(number, payload_of(number, size_of(number))))
        print(f"+{number}", flush=True)
        held[block_id] = number


async def _write(slots: SegmentSlots, random_: random.Random, block_id: int, number: int) -> None:
    payload, offset = payload_of(number, size_of(number)), 0
    while offset < len(payload):
        piece = payload[offset : offset + random_.randint(1, len(payload))]
        await slots.write(block_id, offset, piece)
        offset += len(piece)


if __name__ == "__main__":
    asyncio.run(put_and_free(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Fsync(sys.argv[4])))
