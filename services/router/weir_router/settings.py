"""What a router is told. Every variable is `WEIR_ROUTER_<FIELD>`; lists of addresses are separated by commas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from weir_chassis.followed_file import read_config
from weir_chassis.settings import ServiceSettings
from weir_router.faults.breaker import BreakerLimits
from weir_router.fleet.dns import SCHEME, DnsName
from weir_router.fleet.membership import MAX_OF_A_KIND
from weir_router.retained.options import RetentionLimits
from weir_router.routing_config import RoutingConfig, parse


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _distinct(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(addresses)) < len(addresses):
        raise ValueError("an address is listed twice")
    return addresses


def _sound(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        if address.startswith(SCHEME):
            DnsName.parse(address)
    return addresses


# Distinct, and bounded because each costs a connection and three watching tasks.
Addresses = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split),
    AfterValidator(_distinct),
    AfterValidator(_sound),
    Field(max_length=MAX_OF_A_KIND),
]


class RouterSettings(ServiceSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="WEIR_ROUTER_")

    executors: Addresses = Field(default=(), description="addresses of executors, `host:port,dns:///host:port`")
    tokenizers: Addresses = Field(default=(), description="addresses of tokenizers")
    postprocessors: Addresses = Field(default=(), description="addresses of postprocess services")
    model_hosts: Addresses = Field(default=(), description="addresses of model hosts, on which models can be loaded")
    # The largest models come from a slow disk in about an hour.
    operation_seconds: float = Field(
        default=3600.0, gt=0.0, le=86_400.0, description="loading or unloading may take on one executor or host"
    )

    config_file: Path | None = Field(default=None, description="TOML: how requests are routed; followed as it changes")
    config_poll_seconds: float = Field(default=2.0, gt=0.0, le=3600.0, description="how often it is looked at")

    default_deadline_seconds: float | None = Field(
        default=600.0, gt=0.0, le=86_400.0, description="for a call that brings no deadline; unset lets it run"
    )
    max_running: int = Field(
        default=256, ge=1, le=100_000, description="requests between admission and their last token"
    )
    max_waiting: int = Field(
        default=1024, ge=0, le=1_000_000, description="requests that wait for a place; more are refused"
    )
    max_pending_tokens: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="tokens held for one slow client before its request ends with SLOW_CONSUMER",
    )
    cache_pools: dict[str, str] = Field(
        default_factory=dict,
        description='tenants that share cached prefixes, `{"acme": "team"}`; a tenant that is not named has its own',
    )
    tokenizer_timeout_seconds: float = Field(default=30.0, gt=0.0, le=600.0, description="one ask of one tokenizer")
    no_progress_seconds: float = Field(
        default=60.0,
        gt=0.0,
        le=3600.0,
        description="a worker that is silent for so long while it owes an answer, or answers no probe, is lost",
    )
    # Of an executor that makes steps: one whose requests are preempted may well be silent about one for half a minute.
    no_token_seconds: float = Field(
        default=60.0,
        gt=0.0,
        le=3600.0,
        description="a request that has begun and gets no token for so long goes on at another executor",
    )
    # A request that kills workers must not kill the fleet.
    max_continuations: int = Field(
        default=3, ge=0, le=100, description="how often a stream goes on with another worker after its first token"
    )
    continuation_wait_seconds: float = Field(
        default=10.0,
        ge=0.0,
        le=600.0,
        description="how long a stream waits for a worker to go on with, when none is there",
    )
    # At 4 bytes each, 64 MiB for 256 requests at the most, and in practice a hundredth of that.
    journal_tokens: int = Field(
        default=65_536,
        ge=0,
        description="tokens of one request that are kept to go on with; one that draws more cannot be continued",
    )
    stall_seconds: float = Field(
        default=10.0,
        gt=0.0,
        le=3600.0,
        description="a worker that is silent for so long is not waited for where another one can be asked",
    )
    end_wait_seconds: float = Field(
        default=1.0,
        gt=0.0,
        le=60.0,
        description="how long the executor's last word on a finished request is waited for",
    )
    retry_budget_share: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="extra tries of all kinds, as a share of the last minute's requests",
    )
    # As many as may run at once, so that all of one worker's requests can be saved when it dies. About four a second.
    retry_budget_floor: int = Field(default=256, ge=0, le=10_000, description="and so many a minute in any case")
    eject_failures: int = Field(
        default=5, ge=1, le=1000, description="failures in a row after which a worker is left out for a while"
    )
    eject_failed_share: float = Field(
        default=0.5, gt=0.0, le=1.0, description="or this share of what it was given in ten seconds, if that was enough"
    )
    eject_first_seconds: float = Field(default=1.0, gt=0.0, le=600.0, description="for how long at first; it doubles")
    eject_longest_seconds: float = Field(default=30.0, gt=0.0, le=3600.0, description="for how long at most")
    # Half of those who could take the same requests must bear the load of all.
    max_ejected_share: float = Field(
        default=0.5, ge=0.0, lt=1.0, description="of the workers of one model, or of one kind, left out at once"
    )
    # At 16 tokens a block a few dozen blocks: below, what the transfer takes and delays is more than it spares.
    disaggregate_tokens: int = Field(
        default=512,
        ge=1,
        description="a prompt of so many tokens is computed by an executor whose role is prefill, where there is one",
    )
    # Some 100 bytes each. 131,072 blocks of 16 tokens are what two million tokens leave behind.
    prefix_blocks: int = Field(
        default=131_072,
        ge=1,
        le=100_000_000,
        description="blocks of one executor that are known, for policies which weigh what executors hold",
    )
    prefill_queue_seconds: float = Field(
        default=1.0,
        gt=0.0,
        le=60.0,
        description="how long a prompt waits on NATS for a prefill worker with room, before one is chosen for it",
    )
    retain_max_seconds: float = Field(
        default=3600.0, gt=0.0, le=86_400.0, description="the longest time that a client may ask to be retained for"
    )
    retain_default_seconds: float = Field(
        default=60.0,
        gt=0.0,
        le=86_400.0,
        description="for an idempotency key that comes without `retain`",
    )
    retained_streams: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="streams kept; then the oldest that is over goes",
    )
    retained_bytes: int = Field(
        default=256 << 20, ge=1 << 16, description="of all of them; then the oldest that are over go, then beginnings"
    )
    # A token with its text is some 20 bytes here, with log-probabilities of 20 others some 500.
    retained_stream_bytes: int = Field(
        default=8 << 20, ge=1 << 12, description="of one; a longer one loses its beginning and says so to who wants it"
    )
    redis_url: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="redis://, rediss:// or unix://: where retained streams are shared; unset: nowhere",
    )
    redis_store: str = Field(
        default="main",
        pattern=r"^[A-Za-z0-9._-]{1,63}$",
        description="routers with the same name at the same server share their streams",
    )
    redis_region: str = Field(
        default="",
        max_length=64,
        description="where that server is, with the routers that share it; empty: streams that must stay in a region"
        " are kept by their own router alone",
    )
    redis_timeout_seconds: float = Field(default=1.0, gt=0.0, le=60.0, description="one round trip to it")
    redis_flush_seconds: float = Field(
        default=0.05, gt=0.0, le=10.0, description="between two of them: how much of a stream a killed router may lose"
    )
    redis_lease_seconds: float = Field(
        default=3.0, gt=0.0, le=600.0, description="a router that is not heard of for so long is taken for dead"
    )
    probe_timeout_seconds: float = Field(
        default=5.0, gt=0.0, le=60.0, description="one question about a worker's model or load"
    )
    load_interval_seconds: float = Field(
        default=1.0, gt=0.0, le=60.0, description="between two questions for a worker's load"
    )
    dns_interval_seconds: float = Field(
        default=5.0, gt=0.0, le=3600.0, description="between two lookups of an address `dns:///host:port`"
    )
    dns_keep_seconds: float = Field(
        default=600.0, ge=0.0, le=86_400.0, description="how long its workers are kept while lookups fail"
    )
    slow_start_seconds: float = Field(
        default=10.0,
        ge=0.0,
        le=3600.0,
        description="a worker that is new or has returned gets a growing share of its part for so long; 0: all at once",
    )
    reconnect_min_seconds: float = Field(
        default=0.1, gt=0.0, le=60.0, description="first pause before a lost worker is probed"
    )
    reconnect_max_seconds: float = Field(
        default=2.0, gt=0.0, le=600.0, description="longest pause before it is probed again"
    )

    def routing(self) -> RoutingConfig:
        """As the file says. Raises ConfigError."""
        return RoutingConfig() if self.config_file is None else read_config(self.config_file, parse)

    def breaker_limits(self) -> BreakerLimits:
        return BreakerLimits(
            failures_in_a_row=self.eject_failures,
            failed_share=self.eject_failed_share,
            first_seconds=self.eject_first_seconds,
            longest_seconds=self.eject_longest_seconds,
        )

    def retention(self) -> RetentionLimits:
        return RetentionLimits(
            max_seconds=self.retain_max_seconds,
            default_seconds=self.retain_default_seconds,
            max_streams=self.retained_streams,
            max_bytes=self.retained_bytes,
            max_stream_bytes=self.retained_stream_bytes,
        )

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.retain_max_seconds < self.retain_default_seconds:
            raise ValueError("WEIR_ROUTER_RETAIN_MAX_SECONDS is less than WEIR_ROUTER_RETAIN_DEFAULT_SECONDS")
        if self.redis_lease_seconds < 3 * max(self.redis_flush_seconds, self.redis_timeout_seconds):
            raise ValueError(
                "WEIR_ROUTER_REDIS_LEASE_SECONDS is less than three times WEIR_ROUTER_REDIS_FLUSH_SECONDS "
                "or WEIR_ROUTER_REDIS_TIMEOUT_SECONDS: one round trip that fails would lose it"
            )
        if self.reconnect_max_seconds < self.reconnect_min_seconds:
            raise ValueError("WEIR_ROUTER_RECONNECT_MAX_SECONDS is less than WEIR_ROUTER_RECONNECT_MIN_SECONDS")
        if self.eject_longest_seconds < self.eject_first_seconds:
            raise ValueError("WEIR_ROUTER_EJECT_LONGEST_SECONDS is less than WEIR_ROUTER_EJECT_FIRST_SECONDS")
        self.routing()
        return self
