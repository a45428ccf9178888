"""A smaller `make rolling-restart`: one of each kind that streams run through, under a few streams."""

from __future__ import annotations

from pathlib import Path

from chaos.rolling.run import Plan, roll


async def test_a_rolling_restart_costs_no_stream_and_no_token(tmp_path: Path) -> None:
    """Workers drain for less than a stream takes, so that those which are left are moved; routers finish theirs."""
    kinds = ("executor", "postprocess", "router")
    plan = Plan(streams=8, tokens=40, fake=True, drain_seconds=0.3, kinds=kinds, restarts=1)
    rolled = await roll(tmp_path, plan)
    assert rolled.is_sound, (rolled, rolled.outcomes.examples)
    assert len(rolled.restarts) == 3
    assert rolled.outcomes.continued > 0
