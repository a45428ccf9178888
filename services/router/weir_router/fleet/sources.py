"""Where the router hears of workers: its settings, DNS, and the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from weir.fleet.v1.instance_pb2 import Instance
from weir_chassis.clock import Clock
from weir_chassis.nats import open_broker
from weir_chassis.server import Chassis
from weir_chassis.telemetry import get_logger
from weir_router.fleet.announcements import Announcements
from weir_router.fleet.dns import SCHEME, DnsName, DnsNames, system_resolver
from weir_router.fleet.hosted import HostedExecutors
from weir_router.fleet.membership import Heard, Membership, Place, WorkerKind, membership
from weir_router.fleet.model_hosts import ModelHosts
from weir_router.settings import RouterSettings


class Sources:
    """`membership` merges them as they are now. `changed` is set when one of them says something else."""

    def __init__(self, static: Sequence[Place], clock: Clock) -> None:
        self.changed = asyncio.Event()
        self.dns: DnsNames | None = None
        self.hosted: HostedExecutors | None = None
        self.announcements: Announcements | None = None
        self._static, self._clock = static, clock

    def membership(self, answering: Collection[Place]) -> Membership:
        now = self._clock.monotonic()
        heard: Sequence[Heard] = ()
        if self.announcements is not None:
            self.announcements.announced.forget(answering, now)
            heard = self.announcements.announced.heard()
        resolved = self.dns.places if self.dns is not None else ()
        hosted = self.hosted.places if self.hosted is not None else ()
        return membership(self._static, resolved, hosted, heard, answering, now=now)

    def unheard(self) -> list[str]:
        """Names of those from which nothing comes now."""
        broker = ["the broker"] if self.announcements is not None and not self.announcements.connected else []
        return broker + ([f"DNS for {host}" for host in self.dns.failing()] if self.dns is not None else [])

    def others(self) -> Sequence[Instance]:
        """Who has announced itself and is not sent requests by a router."""
        if self.announcements is None:
            return ()
        return [one.instance for one in self.announcements.announced.heard() if one.place is None]


@contextmanager
def open_sources(settings: RouterSettings, chassis: Chassis) -> Iterator[Sources]:
    """Followed in the background from now on. Raises SettingsError for a broker that can never be reached."""
    configured = _configured(settings)
    sources = Sources([Place(kind, text) for kind, text in configured if not text.startswith(SCHEME)], chassis.clock)
    broker = open_broker(settings, chassis)
    if broker is not None:
        sources.announcements = Announcements(broker, chassis.clock, sources.changed.set)
        chassis.background.start(sources.announcements.run(), name="follow_announcements")
    else:
        _warn_of_missing(configured)
    names = [(kind, DnsName.parse(text)) for kind, text in configured if text.startswith(SCHEME)]
    if settings.model_hosts:
        hosts = ModelHosts(settings.model_hosts, chassis.connect)
        every = settings.load_interval_seconds
        sources.hosted = HostedExecutors(hosts, chassis.clock, sources.changed.set, interval_seconds=every)
        chassis.background.start(sources.hosted.run(), name="ask_model_hosts")
    with system_resolver() as resolve:
        if names:
            sources.dns = DnsNames(
                names,
                resolve,
                chassis.clock,
                sources.changed.set,
                interval_seconds=settings.dns_interval_seconds,
                keep_seconds=settings.dns_keep_seconds,
            )
            chassis.background.start(sources.dns.run(), name="look_up_workers")
        yield sources


def _configured(settings: RouterSettings) -> list[tuple[WorkerKind, str]]:
    addresses: Mapping[WorkerKind, Sequence[str]] = {
        "executor": settings.executors,
        "tokenizer": settings.tokenizers,
        "postprocess": settings.postprocessors,
    }
    return [(kind, text) for kind, texts in addresses.items() for text in texts]


def _warn_of_missing(configured: Sequence[tuple[WorkerKind, str]]) -> None:
    """Nobody will ever be heard of who is not configured."""
    variables: Mapping[WorkerKind, str] = {
        "executor": "EXECUTORS",
        "tokenizer": "TOKENIZERS",
        "postprocess": "POSTPROCESSORS",
    }
    for kind, name in variables.items():
        if not any(each == kind for each, _ in configured):
            get_logger().warning("fleet_is_incomplete", missing=name.lower(), variable=f"WEIR_ROUTER_{name}")
