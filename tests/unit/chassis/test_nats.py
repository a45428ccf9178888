"""The connection to NATS against a real server: it comes, goes, comes back, and holds a bounded amount meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from servers import NatsServer, nats_server
from weir_chassis import nats as nats_module
from weir_chassis.background import Background
from weir_chassis.broker import Message, Session, SessionLost
from weir_chassis.clock import SystemClock
from weir_chassis.metrics import Metrics
from weir_chassis.nats import NatsConnection, connect_nats, source_name
from weir_chassis.server import new_chassis
from weir_chassis.settings import ServiceSettings, SettingsError

TLS = Path(__file__).parent / "tls"


class ToySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_TOY_")


def settings(url: str, **others: object) -> ToySettings:
    return ToySettings.model_validate({"nats_url": url, **others})


@asynccontextmanager
async def connected(told: ServiceSettings, registry: CollectorRegistry | None = None) -> AsyncIterator[NatsConnection]:
    connection = NatsConnection(told, "toy", Metrics("toy", registry), SystemClock(), Random(0))
    async with Background() as background:
        background.start(connection.run(), name="nats")
        yield connection
    assert background.failure is None
    assert connection.session is None


async def session_of(connection: NatsConnection) -> nats_module.NatsSession:
    async with asyncio.timeout(20):
        while connection.session is None:
            await asyncio.sleep(0.01)
    return connection.session


async def receive(session: Session, subject: str) -> asyncio.Queue[Message]:
    queue: asyncio.Queue[Message] = asyncio.Queue()
    await session.subscribe(subject, queue.put_nowait)
    return queue


async def test_what_is_published_arrives_with_its_subject_and_reply(nats: NatsServer) -> None:
    async with connected(settings(nats.url)) as connection:
        session = await session_of(connection)
        queue = await receive(session, "weir.test.*")
        await session.publish("weir.test.one", b"payload", "answer.here")
        assert await asyncio.wait_for(queue.get(), 5) == Message("weir.test.one", b"payload", "answer.here")
        inbox = session.new_inbox()
        answers = await receive(session, f"{inbox}.*")
        await session.publish(f"{inbox}.7", b"answer")
        assert (await asyncio.wait_for(answers.get(), 5)).subject == f"{inbox}.7"


async def test_jetstream_is_there(nats: NatsServer) -> None:
    async with connected(settings(nats.url)) as connection:
        session = await session_of(connection)
        jetstream = session.client.jetstream()
        await jetstream.add_stream(name="toy", subjects=["toy.queue"])
        await jetstream.publish("toy.queue", b"work")
        puller = await jetstream.pull_subscribe("toy.queue", durable="workers")
        (message,) = await puller.fetch(1, timeout=5)
        assert message.data == b"work"
        await message.ack()


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_lost_server_ends_the_session_and_the_next_one_begins_anew(tmp_path: Path, how: str) -> None:
    registry, begun, cancelled = CollectorRegistry(), list[Session](), 0

    async def work(session: Session) -> None:
        nonlocal cancelled
        begun.append(session)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    with nats_server(tmp_path) as server:
        async with connected(settings(server.url), registry) as connection:
            working = asyncio.create_task(connection.run_in_sessions(work))
            first = await session_of(connection)
            getattr(server, how)()
            async with asyncio.timeout(20):
                await first.ended.wait()
                with pytest.raises(SessionLost):
                    await first.publish("weir.test", b"")
                with pytest.raises(SessionLost):
                    await first.subscribe("weir.test", lambda _: None)
                while connection.session is not None:
                    await asyncio.sleep(0.01)
            assert registry.get_sample_value("weir_toy_nats_connected") == 0
            server.start()
            second = await session_of(connection)
            assert second is not first
            await receive(second, "weir.test")
            assert (begun, cancelled) == ([first, second], 1)
            assert registry.get_sample_value("weir_toy_nats_sessions_total") == 2
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def test_a_server_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        server.stop()
        async with connected(settings(server.url)) as connection:
            await asyncio.sleep(0.3)
            assert connection.session is None
            server.start()
            await session_of(connection)


async def test_a_server_that_stands_still_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither closes the connection nor reads from it: publishers wait, and then hear of the loss."""
    monkeypatch.setattr(nats_module, "_ANSWER_SECONDS", 1)
    monkeypatch.setattr(nats_module, "_PING_SECONDS", 0.1)
    with nats_server(tmp_path) as server:
        async with connected(settings(server.url)) as connection:
            session = await session_of(connection)
            assert server.process is not None
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(20):
                    with pytest.raises(SessionLost):
                        while True:
                            await session.publish("weir.test", bytes(512 * 1024))
                            assert session.client.pending_data_size < 2 * nats_module._MAX_PENDING_BYTES
                    await session.ended.wait()
            finally:
                os.kill(server.process.pid, signal.SIGCONT)


async def test_user_and_password_are_passed_through(tmp_path: Path) -> None:
    with nats_server(tmp_path, "--user", "ann", "--pass", "secret") as server:
        async with connected(settings(server.url, nats_user="ann", nats_password="secret")) as connection:
            await session_of(connection)
        async with connected(settings(server.url.replace("//", "//ann:secret@"))) as connection:
            await session_of(connection)
        async with connected(settings(server.url, nats_user="ann", nats_password="wrong")) as connection:
            await asyncio.sleep(0.3)
            assert connection.session is None


async def test_an_error_in_the_work_is_its_owners(nats: NatsServer) -> None:
    async def work(_: Session) -> None:
        raise ValueError("a bug")

    async with connected(settings(nats.url)) as connection:
        with pytest.raises(ValueError, match="a bug"):
            await asyncio.wait_for(connection.run_in_sessions(work), 10)


async def test_work_that_is_done_waits_for_the_next_session(nats: NatsServer) -> None:
    calls = 0

    async def work(_: Session) -> None:
        nonlocal calls
        calls += 1

    async with connected(settings(nats.url)) as connection:
        working = asyncio.create_task(connection.run_in_sessions(work))
        session = await session_of(connection)
        await receive(session, "weir.test")
        assert calls == 1
        session.ended.set()
        async with asyncio.timeout(10):
            while calls < 2:
                await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def test_certificates_that_are_not_there_stop_the_start(tmp_path: Path) -> None:
    told = settings("tls://localhost:4222", nats_tls_ca_file=tmp_path / "missing.pem")
    with pytest.raises(SettingsError, match="NATS_TLS"):
        NatsConnection(told, "toy", Metrics("toy"), SystemClock(), Random(0))


def test_credentials_that_are_not_there_stop_the_start(tmp_path: Path) -> None:
    told = settings("nats://localhost:4222", nats_credentials_file=tmp_path / "missing.creds")
    with pytest.raises(SettingsError, match="NATS_CREDENTIALS_FILE"):
        NatsConnection(told, "toy", Metrics("toy"), SystemClock(), Random(0))


@pytest.mark.parametrize("url", ["http://host:4222", "nats://", "nats://host:port", "nats://host:4222,wss://h", " , "])
def test_an_address_that_is_none_stops_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="NATS_URL"):
        NatsConnection(settings(url), "toy", Metrics("toy"), SystemClock(), Random(0))


@pytest.mark.parametrize("url", ["host:4222", "nats://[::1]:4222, nats://user:pass@host", "tls://host"])
def test_addresses_that_are_some_are_taken(url: str) -> None:
    assert NatsConnection(settings(url), "toy", Metrics("toy"), SystemClock(), Random(0)).session is None


def test_the_url_is_a_secret() -> None:
    assert "hunter2" not in repr(settings("nats://ann:hunter2@host:4222"))


def test_a_service_publishes_under_the_address_that_others_know() -> None:
    told = settings("nats://host:4222", host="10.0.0.7", port=7701)
    assert source_name(told, Random(0)) == "10.0.0.7:7701"
    assert source_name(told.replace(nats_source="executor-3"), Random(0)) == "executor-3"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_two_hosts_publish_under_the_same_name(host: str) -> None:
    assert source_name(settings("nats://host:4222", host=host, port=7701), Random(0)) == f"{socket.gethostname()}:7701"


def test_a_service_on_any_free_port_has_a_name_of_its_own() -> None:
    told = settings("nats://host:4222")
    names = {source_name(told, Random(seed)) for seed in range(10)}
    assert len(names) == 10


async def test_without_an_address_there_is_no_connection() -> None:
    chassis = new_chassis("toy")
    assert connect_nats(ToySettings(), chassis) is None
    assert len(chassis.background) == 0


async def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    certificate, key = TLS / "certificate.pem", TLS / "key.pem"
    ours = {"nats_tls_ca_file": certificate, "nats_tls_cert_file": certificate, "nats_tls_key_file": key}
    files = ["--tlscert", str(certificate), "--tlskey", str(key), "--tlscacert", str(certificate)]
    with nats_server(tmp_path, "--tls", "--tlsverify", *files) as server:
        url = server.url.replace("nats://", "tls://")
        async with connected(settings(url, **ours)) as connection:
            session = await session_of(connection)
            queue = await receive(session, "weir.test.tls")
            await session.publish("weir.test.tls", b"secret")
            assert (await asyncio.wait_for(queue.get(), 5)).payload == b"secret"
        for wrong in ({}, {"nats_tls_ca_file": certificate}):  # a server that we do not trust; clients that it does not
            async with connected(settings(url, **wrong)) as connection:
                await asyncio.sleep(0.5)
                assert connection.session is None
