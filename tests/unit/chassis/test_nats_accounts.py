"""A user's JWT and seed against a real server in operator mode, which believes what its operator's accounts signed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import NatsServer, nats_server
from unit.chassis.nats_accounts import Accounts
from unit.chassis.test_nats import connected, receive, session_of, settings


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    return Accounts(tmp_path / "accounts")


@pytest.fixture
def server(tmp_path: Path, accounts: Accounts) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats", "--config", str(accounts.config)) as running:
        yield running


async def test_a_users_credentials_connect_and_carry_its_rights(server: NatsServer, accounts: Accounts) -> None:
    told = settings(server.url, nats_credentials_file=accounts.credentials("weir", publishes="weir.>"))
    async with connected(told) as connection:
        session = await session_of(connection)
        heard = await receive(session, "weir.kv")
        elsewhere = await receive(session, "other.kv")
        await session.publish("other.kv", b"not allowed")
        await session.publish("weir.kv", b"allowed")
        assert (await asyncio.wait_for(heard.get(), 10)).payload == b"allowed"
        assert elsewhere.empty(), "published before, and refused by the server"
        assert connection.session is session, "which is no reason to end the connection"


async def test_a_lost_server_is_found_again_with_the_same_file(server: NatsServer, accounts: Accounts) -> None:
    async with connected(settings(server.url, nats_credentials_file=accounts.credentials("weir"))) as connection:
        first = await session_of(connection)
        server.kill()
        await asyncio.wait_for(first.ended.wait(), 20)
        server.start()
        async with asyncio.timeout(30):
            while connection.session in (None, first):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("wrong", ["nobody's", "lapsed", "cut off", "no such file at all", "another file"])
async def test_a_file_that_is_refused_is_read_again_until_it_is_right(
    server: NatsServer, accounts: Accounts, tmp_path: Path, wrong: str
) -> None:
    """Credentials are renewed by replacing their file, which may be found half written."""
    path, right = tmp_path / "weir.creds", accounts.credentials("weir").read_text()
    texts = {
        "nobody's": Accounts(tmp_path / "others").credentials("weir").read_text(),
        "lapsed": accounts.credentials("lapsed", expires=int(time.time()) - 60).read_text(),
        "cut off": right[:-80],
        "another file": "hello\n",
    }
    path.write_text(texts.get(wrong, right))
    async with connected(settings(server.url, nats_credentials_file=path)) as connection:
        if wrong == "no such file at all":
            path.unlink()  # after the start, which looked for it
        else:
            await asyncio.sleep(0.3)
            assert connection.session is None
        path.write_text(right)
        await session_of(connection)


async def test_without_credentials_the_server_is_unreachable(server: NatsServer) -> None:
    async with connected(settings(server.url)) as connection:
        await asyncio.sleep(0.3)
        assert connection.session is None
