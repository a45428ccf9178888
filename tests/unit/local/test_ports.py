from __future__ import annotations

import socket
from pathlib import Path

import pytest

from weir_local import ports
from weir_local.placement import HOST
from weir_local.ports import FreePorts


def test_none_is_given_twice() -> None:
    free = FreePorts()
    given = [free() for _ in range(50)]
    assert len(set(given)) == 50
    assert all(10_000 <= port < ports._system_ports_from() for port in given)


def test_none_that_somebody_has() -> None:
    with socket.create_server((HOST, FreePorts(10_002)())) as taken:
        free = FreePorts(10_002)
        given = [free(), free()]
        assert taken.getsockname()[1] not in given
        assert {10_000, 10_001} - set(given), "and the system's own when those are used up"


def test_the_system_says_where_its_own_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "range"
    told.write_text("20000\t60999\n")
    monkeypatch.setattr(ports, "_GIVEN_AWAY", told)
    assert ports._system_ports_from() == 20_000
    monkeypatch.setattr(ports, "_GIVEN_AWAY", tmp_path / "no such file")
    assert ports._system_ports_from() == 32_768


@pytest.mark.parametrize("begin", [1024, 10_000])
def test_where_the_system_gives_all_of_them_away_it_is_asked_for_any(begin: int) -> None:
    free = FreePorts(begin)
    with socket.create_server((HOST, free())):
        assert free() > 1024
