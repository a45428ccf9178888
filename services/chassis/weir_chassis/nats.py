"""The connection to NATS that a process has: kept up for ever, and bounded in what it holds.

    connecting ── connected ──▶ a session: publish, subscribe, JetStream ── lost ──▶ a pause, twice as long each time
         ▲                                                                              │
         └──────────────────────────────────────────────────────────────────────────────┘

A lost connection ends its session and everything in it, so that whoever publishes or follows knows that there is doubt.
The client's own reconnecting is off: it would hide the loss, and it gives up for good after some errors.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from weir_chassis.background import first_of
from weir_chassis.broker import Broker, Deliver, Message, Session, SessionLost
from weir_chassis.clock import Clock
from weir_chassis.metrics import Metrics
from weir_chassis.nats_credentials import NatsCredentials
from weir_chassis.settings import ANY_HOST, MAX_SOURCE_CHARS, ServiceSettings, SettingsError
from weir_chassis.telemetry import get_logger

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from weir_chassis.server import Chassis

_SCHEMES: Final = ("nats", "tls")
_CONNECT_SECONDS: Final = 2
# How long nobody notices a server that neither answers nor closes: one period and one wait for its answer.
_PING_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 5
_CLOSE_SECONDS: Final = 1.0
# The pause before the next try: from a blink, for a server that is restarted, to what a fleet's retries may cost one.
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.1, 5.0
# What has been published and not yet written to the socket; beyond it, publishers wait.
_MAX_PENDING_BYTES: Final = 8 * 1024 * 1024
# What has come in and not been delivered; beyond it, messages are dropped and counted, and their readers see a gap.
_MAX_UNREAD_MESSAGES, _MAX_UNREAD_BYTES = 65_536, 32 * 1024 * 1024


@dataclass(slots=True)
class Buses:
    """What a process is connected to: one of each at most."""

    # Once somebody has asked for it.
    nats: NatsConnection | None = None
    # Handed in where services share a process.
    in_memory: Broker | None = None


def connect_nats(settings: ServiceSettings, chassis: Chassis) -> NatsConnection | None:
    """The process's connection, kept up in the background from now on. None when no NATS is configured.

    Raises SettingsError for options that can never work; a server that is not there is waited for.
    """
    if settings.nats_url is None:
        return None
    if chassis.buses.nats is None:
        connection = NatsConnection(settings, chassis.service, chassis.metrics, chassis.clock, chassis.random)
        chassis.background.start(connection.run(), name="keep_nats")
        chassis.buses.nats = connection
    return chassis.buses.nats


def open_broker(settings: ServiceSettings, chassis: Chassis) -> Broker | None:
    """NATS where it is configured, else the bus of services that share a process; None: neither. Raises as above."""
    return connect_nats(settings, chassis) or chassis.buses.in_memory


def is_on_this_machine(settings: ServiceSettings) -> bool:
    """Whether all who hear what is published are likely to be, as those who use a server on loopback are."""
    servers = [] if settings.nats_url is None else _servers(settings.nats_url.get_secret_value())
    return all(is_loopback(urlsplit(url if "://" in url else f"nats://{url}").hostname or "") for url in servers)


def source_name(settings: ServiceSettings, random: Random) -> str:
    """Under which name a service publishes: as others know it. Of its own where nobody could: any free port."""
    if name := settings.nats_source or settings.advertise:
        return name[:MAX_SOURCE_CHARS]
    host = socket.gethostname() if settings.host in ANY_HOST else settings.host
    return f"{host}:{settings.port or f'{random.getrandbits(64):x}'}"[:MAX_SOURCE_CHARS]


class NatsSession:
    """One connection. `client` is for what only NATS has: `session.client.jetstream()`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ended = asyncio.Event()

    @property
    def max_payload(self) -> int:
        return self.client.max_payload

    def new_inbox(self) -> str:
        return self.client.new_inbox()

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        from nats.errors import Error  # noqa: PLC0415

        try:
            if self.client.pending_data_size + len(payload) > _MAX_PENDING_BYTES:
                await self.client.rtt(_ANSWER_SECONDS)  # it has taken all by the time that it answers
            self._require_life()
            await self.client.publish(subject, payload, reply)
        except (Error, OSError) as error:
            self.ended.set()
            raise SessionLost(str(error)) from error

    async def subscribe(self, subject: str, deliver: Deliver) -> None:
        from nats.errors import Error  # noqa: PLC0415

        async def take(message: Msg) -> None:
            deliver(Message(message.subject, message.data, message.reply))

        self._require_life()
        try:
            await self.client.subscribe(
                subject, cb=take, pending_msgs_limit=_MAX_UNREAD_MESSAGES, pending_bytes_limit=_MAX_UNREAD_BYTES
            )
            await self.client.rtt(_ANSWER_SECONDS)  # whoever publishes from now on is heard
        except (Error, OSError) as error:
            self.ended.set()
            raise SessionLost(str(error)) from error

    async def watch(self) -> None:
        """Returns when the connection has ended, or does not answer any more."""
        from nats.errors import Error  # noqa: PLC0415

        with suppress(Error, OSError):
            while self.client.is_connected and not self.ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.ended.wait(), _PING_SECONDS)
                    return
                await self.client.rtt(_ANSWER_SECONDS)
        self.ended.set()

    def _require_life(self) -> None:
        if self.ended.is_set() or not self.client.is_connected:
            raise SessionLost("the connection to NATS has ended")


class NatsConnection:
    """Keeps a session alive while `run` runs. Used from one event loop."""

    def __init__(self, settings: ServiceSettings, name: str, metrics: Metrics, clock: Clock, random: Random) -> None:
        """Connects to nothing yet. Raises SettingsError for options that can never work."""
        self._options = _client_options(settings, name)
        self._clock, self._random = clock, random
        self._session: NatsSession | None = None
        self._changed = asyncio.Event()
        self._connected = metrics.gauge("nats_connected", "1 while there is a connection to NATS")
        self._sessions = metrics.counter("nats_sessions", "Connections made to NATS")
        self._dropped = metrics.counter("nats_dropped_messages", "Messages that came faster than they were taken")

    @property
    def session(self) -> NatsSession | None:
        """The one of now, for whoever has something else to do when there is none."""
        return self._session

    async def run(self) -> None:
        """For ever. Closes the connection when it is cancelled."""
        pause, reported = _MIN_PAUSE_SECONDS, False
        while True:
            began = self._clock.monotonic()
            try:
                async with self._open() as session:
                    reported = False
                    await session.watch()
                get_logger().warning("nats_lost")
            except _Unreachable as error:
                if not reported:  # once for as long as it lasts
                    get_logger().warning("nats_unreachable", reason=str(error))
                    reported = True
            if self._clock.monotonic() - began > _MAX_PAUSE_SECONDS:
                pause = _MIN_PAUSE_SECONDS
            # Half of it by chance: a fleet that lost one server should not come back as one.
            await self._clock.sleep(pause * self._random.uniform(0.5, 1.0))
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def run_in_sessions(self, work: Callable[[Session], Awaitable[None]]) -> None:
        """For ever: runs `work` in each session from its beginning, and cancels it when the session ends.

        Work that returns is done until the next session; SessionLost is caught, every other error is raised here.
        """
        while True:
            changed, session = self._changed, self._session
            if session is not None:
                try:
                    await first_of(work(session), session.ended.wait())
                except SessionLost:
                    session.ended.set()
            if self._session is session:
                await changed.wait()

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[NatsSession, None]:
        """Raises _Unreachable."""
        session = await self._connect()
        self._sessions.inc()
        get_logger().info("nats_connected", server=session.client.connected_url and session.client.connected_url.netloc)
        self._announce(session)
        try:
            yield session
        finally:
            session.ended.set()
            self._announce(None)
            await _close(session.client)

    async def _connect(self) -> NatsSession:
        from nats.aio.client import Client  # noqa: PLC0415
        from nats.errors import Error  # noqa: PLC0415

        client = Client()
        session = NatsSession(client)

        async def closed() -> None:
            session.ended.set()

        try:
            await client.connect(**self._options, closed_cb=closed, error_cb=self._count_error)
        # ValueError: of the credentials file, which is read anew with each try.
        except (Error, OSError, TimeoutError, ValueError) as error:
            await _close(client)
            raise _Unreachable(str(error) or type(error).__name__) from error
        except BaseException:
            await _close(client)
            raise
        return session

    async def _count_error(self, error: Exception) -> None:
        """What the client has to say between calls: mostly what its methods raise too."""
        from nats.errors import SlowConsumerError  # noqa: PLC0415

        if isinstance(error, SlowConsumerError):
            self._dropped.inc()
        else:
            get_logger().debug("nats_error", reason=str(error) or type(error).__name__)

    def _announce(self, session: NatsSession | None) -> None:
        # Each change retires the event that others wait on, so that none is missed and none has to be cleared.
        self._session = session
        self._connected.set(session is not None)
        self._changed.set()
        self._changed = asyncio.Event()


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Unreachable(Exception):  # noqa: N818
    pass


async def _close(client: Client) -> None:
    """Writes what is pending, if the server still reads."""
    from nats.errors import Error  # noqa: PLC0415

    with suppress(Error, OSError, TimeoutError):
        await asyncio.wait_for(client.close(), _CLOSE_SECONDS)


def _client_options(settings: ServiceSettings, name: str) -> dict[str, Any]:
    try:
        import nats  # noqa: F401, PLC0415  # whether it is there is told at the start, not at the first connection
    except ImportError as error:
        raise SettingsError("NATS_URL is set, and nats-py is not installed: it comes with weir[nats]") from error
    assert settings.nats_url is not None
    options: dict[str, Any] = {
        "servers": _servers(settings.nats_url.get_secret_value()),
        "name": f"weir-{name}",
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,  # the bound of its first connection too, for each server of the list
        "reconnect_time_wait": 0,
        "connect_timeout": _CONNECT_SECONDS,
        "flush_timeout": _ANSWER_SECONDS,
        "pending_size": _MAX_PENDING_BYTES,
        "tls": _tls_context(settings),
    }
    if settings.nats_user:
        options |= {"user": settings.nats_user, "password": settings.nats_password.get_secret_value()}
    if settings.nats_token.get_secret_value():
        options["token"] = settings.nats_token.get_secret_value()
    if settings.nats_credentials_file is not None:
        if not settings.nats_credentials_file.is_file():
            raise SettingsError(f"NATS_CREDENTIALS_FILE: {settings.nats_credentials_file} is no file")
        credentials = NatsCredentials(settings.nats_credentials_file)
        options |= {"user_jwt_cb": credentials.jwt, "signature_cb": credentials.sign}
    return options


def _servers(urls: str) -> list[str]:
    servers = [url.strip() for url in urls.split(",") if url.strip()]
    for number, server in enumerate(servers):
        try:
            parts = urlsplit(server if "://" in server else f"nats://{server}")
            usable = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:  # it may hold a password, so it is not shown
            raise SettingsError(f"NATS_URL: server {number + 1} is not nats://host:port or tls://host:port")
    if not servers:
        raise SettingsError("NATS_URL: names no server")
    return servers


def _tls_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """None: the system's authorities, where the server asks for TLS."""
    if settings.nats_tls_ca_file is None and settings.nats_tls_cert_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.nats_tls_ca_file)
        if settings.nats_tls_cert_file is not None:
            context.load_cert_chain(settings.nats_tls_cert_file, settings.nats_tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"NATS_TLS_*: {error}") from error
    return context
