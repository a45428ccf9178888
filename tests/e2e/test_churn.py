"""A few seconds of `make churn`: workers die and return while requests come; nobody hangs and nothing is left."""

from __future__ import annotations

from pathlib import Path

from chaos.churn.__main__ import is_sound
from chaos.churn.load import Load
from chaos.churn.run import churn


async def test_no_request_hangs_while_workers_come_and_go(tmp_path: Path) -> None:
    churned = await churn(tmp_path, seconds=6.0, load=Load(per_second=8, tokens=30, deadline_seconds=20.0), seed=1)
    outcomes = churned.outcomes
    assert is_sound(churned), churned
    assert outcomes.requests == 48 == outcomes.answered + sum(outcomes.by_reason.values())
    assert outcomes.answered > 24, outcomes
    assert sum(churned.fleet.deaths.values()) >= 2, "some worker died, or nothing was shown"
