"""What a local stack leaves behind for others to find, and what it refuses before it starts anything."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from weir_client.stack import RunningService, read_stack, write_stack
from weir_local import stack
from weir_local.placement import HOST, Placement, PlannedService

OTHER = RunningService("router", "127.0.0.1:1", os.getpid())


@pytest.fixture
def placement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Placement:
    """Of a stack whose services are only said to run."""

    @asynccontextmanager
    async def placed(plans: list[PlannedService], *_: Any) -> AsyncIterator[stack._Placed]:
        services = [RunningService(plan.service, plan.address, os.getpid()) for plan in plans]
        yield services, asyncio.get_running_loop().create_future()

    async def healthy(*_: Any) -> None:
        pass

    monkeypatch.setenv("WEIR_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(stack, "_in_processes", placed)
    monkeypatch.setattr(stack, "until_healthy", healthy)
    return Placement(port=0)


async def test_a_stack_is_known_while_it_runs(placement: Placement, tmp_path: Path) -> None:
    async with stack.running(placement, stack._remember) as running:
        assert running.router in [service.address for service in read_stack(tmp_path)]
    assert read_stack(tmp_path) == []


async def test_a_demo_leaves_the_running_stack_known(placement: Placement, tmp_path: Path) -> None:
    write_stack([OTHER], tmp_path)
    async with stack.running(placement):
        assert read_stack(tmp_path) == [OTHER]
    assert read_stack(tmp_path) == [OTHER]


async def test_a_port_that_is_taken_is_refused_and_its_owner_stays_known(placement: Placement, tmp_path: Path) -> None:
    write_stack([OTHER], tmp_path)
    with socket.create_server((HOST, 0)) as owner:
        port = owner.getsockname()[1]
        with pytest.raises(click.ClickException, match=rf"port {port} of {HOST} is taken"):
            async with stack.running(Placement(port=port), stack._remember):
                pass
    assert read_stack(tmp_path) == [OTHER]
