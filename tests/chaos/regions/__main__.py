"""`make regions`: the story, a line for each step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from chaos.regions.story import story
from chaos.regions.world import running_world


async def main() -> None:
    with TemporaryDirectory() as directory:
        async with running_world(Path(directory)) as world:
            print("two regions run, a gateway that knows their routers, a door that knows their workers", flush=True)
            async for line in story(world):
                print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
