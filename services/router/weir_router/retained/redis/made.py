"""Streams shared through Redis, as the settings say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from redis.exceptions import RedisError

from weir_chassis.redis import close_client, open_client
from weir_chassis.server import Chassis
from weir_chassis.settings import SettingsError
from weir_chassis.store_link import StoreLink
from weir_router.metrics import RouterMetrics
from weir_router.retained.redis.logs import SharedLogs
from weir_router.retained.redis.streams import READ_ENTRIES, SharedStreams, SharingLimits
from weir_router.settings import RouterSettings

# One for round trips, the others for calls that begin or are resumed meanwhile; more of these wait, with their timers.
_CONNECTIONS: Final = 8


@asynccontextmanager
async def make(settings: RouterSettings, chassis: Chassis, metrics: RouterMetrics) -> AsyncIterator[SharedStreams]:
    """Raises SettingsError for a URL that is none; a server that is not there is done without."""
    assert settings.redis_url is not None
    limits = SharingLimits(settings.redis_flush_seconds, settings.redis_lease_seconds, settings.redis_timeout_seconds)
    try:
        client = open_client(settings.redis_url.get_secret_value(), connections=_CONNECTIONS)
    except ValueError as error:
        raise SettingsError(f"WEIR_ROUTER_REDIS_URL: {error}") from None
    owner = f"{chassis.random.getrandbits(128):032x}"
    logs = SharedLogs(client, settings.redis_store, owner, round(1000 * limits.lease), READ_ENTRIES)
    link = StoreLink("retained_streams", (RedisError,), clock=chassis.clock, random=chassis.random)
    try:
        region = settings.redis_region
        yield SharedStreams(logs, link, limits, region=region, clock=chassis.clock, metrics=metrics)
    finally:
        await close_client(client)
