"""`make regions`, as a test: a region of real processes is lost, and nothing leaves for where it may not go."""

from __future__ import annotations

from pathlib import Path

from chaos.regions.story import story
from chaos.regions.world import running_world


async def test_a_lost_region_fails_over_within_what_each_tenant_allows(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        lines = [line async for line in story(world)]
    print("\n".join(lines))
    assert len(lines) == 6
