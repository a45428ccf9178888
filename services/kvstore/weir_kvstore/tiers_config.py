"""Which tiers there are, what each may hold, and what each tenant may: one TOML file. Pure: it opens none.

    min_prefix_tokens = 64

    [[tier]]
    kind = "ram"
    max_bytes = "16GiB"

    [[tier]]
    kind = "disk"
    path = "/var/lib/weir/kv"
    max_bytes = "200GiB"
    ttl = "3d"

    [tenants.acme]
    max_bytes = { ram = "4GiB", disk = "50GiB" }
    share = 2

What is left out is as in a deployment that lives from its cache: RAM by LFU for 6 hours, disk by FIFO for 24.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self, TypeAlias, get_args

from pydantic import Field, field_validator, model_validator

from weir_chassis.quantities import Lifetime, Size, duration_text, size_text
from weir_chassis.toml_config import Table, parse_toml
from weir_kvstore.policies.admission import AdmissionName
from weir_kvstore.policies.make import PolicyName
from weir_kvstore.tenants import Quota, Quotas
from weir_kvstore.tiers.disk.direct import Reads
from weir_kvstore.tiers.disk.fsync import Fsync

GIB: Final = 1 << 30
HOUR: Final = 3600.0
OTHER_TENANTS: Final = "*"
MAX_TENANT_BYTES: Final = 128  # of a name, as in the contract
# One line of the file each; what a hostile or mistaken file may make us check.
_MAX_TENANTS: Final = 10_000
# Where pydantic's own words name its insides.
_MESSAGES: Final = {"union_tag_not_found": "kind is missing; one of 'ram', 'disk', 'redis' or 'peer'"}


class _Tier(Table):
    # What names the place itself: another one is another tier, which takes a restart.
    fixed: ClassVar[tuple[str, ...]] = ()

    bandwidth_bytes_per_second: Size | None = Field(
        default=None, description="what is moved into it in the background takes no more; left out: no limit"
    )


class _Bounded(_Tier):
    """A tier whose bytes are counted."""

    max_bytes: Size
    policy: PolicyName
    ttl: Lifetime
    admission: AdmissionName = "all"


class RamTier(_Bounded):
    kind: Literal["ram"] = "ram"
    max_bytes: Size = GIB
    policy: PolicyName = "lfu"
    ttl: Lifetime = 6 * HOUR

    @field_validator("bandwidth_bytes_per_second")
    @classmethod
    def _is_not_copied_into(cls, bytes_per_second: int | None) -> int | None:
        if bytes_per_second is not None:
            raise ValueError("nothing is copied into RAM in the background; leave it out here, and set it where it is")
        return bytes_per_second


class DiskTier(_Bounded):
    fixed: ClassVar = ("path", "fsync", "reads")

    kind: Literal["disk"] = "disk"
    path: Path
    max_bytes: Size = 16 * GIB
    policy: PolicyName = "fifo"
    ttl: Lifetime = 24 * HOUR
    fsync: Fsync = Field(
        default=Fsync.NONE, description="what a stored block survives: the process's end, or the machine's too"
    )
    reads: Reads = Field(
        default=Reads.DIRECT, description="past the page cache, where the file system can do that; or through it"
    )

    @field_validator("path")
    @classmethod
    def _is_absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError("must begin with /: a service's working directory is nobody's choice")
        return path


class RedisTier(_Bounded):
    """Shared: all stores of one `name` at one server are one tier, and are to be told alike."""

    fixed: ClassVar = ("url", "name")

    kind: Literal["redis"] = "redis"
    # It may hold a password.
    url: str = Field(min_length=1, max_length=2048, pattern=r"^(redis|rediss|unix)://", repr=False)
    name: str = Field(default="weir", min_length=1, max_length=64, pattern=r"^[^{}\s]+$")
    max_bytes: Size = 4 * GIB
    policy: Literal["lru", "lfu", "fifo"] = "lru"
    ttl: Lifetime = 24 * HOUR
    admission: AdmissionName = "second_use"


class PeerTier(_Tier):
    """Another kvstore, which has rules of its own."""

    fixed: ClassVar = ("address",)

    kind: Literal["peer"] = "peer"
    address: str = Field(min_length=1, max_length=256, pattern=r"^\S+:\S+$")
    admission: AdmissionName = "all"


TierConfig: TypeAlias = Annotated[RamTier | DiskTier | RedisTier | PeerTier, Field(discriminator="kind")]
Kind: TypeAlias = Literal["ram", "disk", "redis", "peer"]


class TenantConfig(Table):
    max_bytes: Mapping[Literal["ram", "disk", "redis"], Size] = Field(
        default_factory=dict, description="by kind of tier, or one size for each; left out: as much as the tier has"
    )
    share: float = Field(default=1.0, gt=0, le=1e6, description="weight among the others; below it nobody takes")
    pool: str | None = Field(default=None, min_length=1, description="whose quota it is charged to; left out: its own")

    @field_validator("max_bytes", mode="before")
    @classmethod
    def _one_size_for_each(cls, value: object) -> object:
        return value if isinstance(value, Mapping) else dict.fromkeys(("ram", "disk", "redis"), value)

    @model_validator(mode="after")
    def _a_pool_has_its_own_quota(self) -> Self:
        if self.pool is not None and self.model_fields_set - {"pool"}:
            raise ValueError(f"with pool = {self.pool!r}, max_bytes and share belong under tenants.{self.pool}")
        return self

    def quota(self, kind: Kind) -> Quota:
        limit = next((size for name, size in self.max_bytes.items() if name == kind), None)
        return Quota(limit, self.share)


class TiersConfig(Table):
    """From the fastest tier to the slowest."""

    min_prefix_tokens: int = Field(
        default=0, ge=0, le=10_000_000, description="shorter prefixes are neither stored nor looked up"
    )
    tier: tuple[TierConfig, ...] = Field(default=(RamTier(),))
    tenants: Mapping[str, TenantConfig] = Field(default_factory=dict, max_length=_MAX_TENANTS)

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        kinds = [tier.kind for tier in self.tier]
        if kinds[:1] != ["ram"]:
            raise ValueError("tier[0].kind: the first is 'ram', through which everything is read")
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"tier: more than one of kind {', '.join(sorted(twice))}; the limit is one of each")
        for name, tenant in self.tenants.items():
            self._check_tenant(name, tenant)
        return self

    def _check_tenant(self, name: str, tenant: TenantConfig) -> None:
        if len(name.encode()) > MAX_TENANT_BYTES:
            raise ValueError(f"tenants.{name[:20]}…: {len(name.encode())} bytes, the limit is {MAX_TENANT_BYTES}")
        pool = self.tenants.get(tenant.pool) if tenant.pool is not None else None
        if pool is not None and pool.pool is not None:
            raise ValueError(f"tenants.{name}.pool: {tenant.pool!r} is in a pool itself")

    def account(self, tenant: str) -> str:
        """Whose quota this tenant's blocks are charged to."""
        config = self.tenants.get(tenant) or self.tenants.get(OTHER_TENANTS)
        return tenant if config is None or config.pool is None else config.pool

    def quotas(self, kind: Kind) -> Quotas:
        """Of every account, in the tier of this kind."""
        named = {name: tenant.quota(kind) for name, tenant in self.tenants.items() if tenant.pool is None}
        others = named.pop(OTHER_TENANTS, Quota())
        return Quotas(named, others)


@dataclass(frozen=True, slots=True)
class InForce:
    """What holds now, and why that is not all of the newest file."""

    config: TiersConfig
    error: str = ""


def parse(text: str) -> TiersConfig:
    """Raises ConfigError."""
    return parse_toml(TiersConfig, text, messages=_MESSAGES, tags=get_args(Kind))


def render(config: TiersConfig) -> str:
    """The whole of it as a file, with what was left out; passwords are not in it."""
    lines = [f"min_prefix_tokens = {config.min_prefix_tokens}"]
    for tier in config.tier:
        lines += ["", "[[tier]]", f'kind = "{tier.kind}"', *_render_fields(tier, type(tier).model_fields)]
    for name, tenant in config.tenants.items():
        lines += ["", f"[tenants.{json.dumps(name)}]", *_render_fields(tenant, tenant.model_fields_set)]
    return "\n".join(lines) + "\n"


def _render_fields(table: TierConfig | TenantConfig, keys: Collection[str]) -> Iterator[str]:
    for key, value in table:
        if key in keys and key != "kind" and (value is not None or key == "ttl"):
            yield f"{key} = {_render_value(key, value)}"


def _render_value(key: str, value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{kind} = {_render_value(key, size)}" for kind, size in value.items()) + " }"
    if key == "ttl":
        return f'"{duration_text(value)}"' if value is None or isinstance(value, float) else ""
    if key == "url":
        return json.dumps(re.sub(r"//[^/@]*@", "//…@", str(value)), ensure_ascii=False)
    if isinstance(value, int):
        return f'"{size_text(value)}"'
    return f"{value:g}" if isinstance(value, float) else json.dumps(str(value), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of a new configuration in a running store."""

    config: TiersConfig  # what is in force from now on: the new one where it can be, the old where not
    refused: Sequence[TakesRestart]  # why it is not all of the new one


@dataclass(frozen=True, slots=True)
class TakesRestart:
    """What a running store cannot change. As text it is one line, without anybody's password."""

    key: str  # as in the file: `tier[0].max_bytes`
    in_force: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.key}: {self.in_force} stays in force; {self.wanted} takes a restart"


def diff(old: TiersConfig, new: TiersConfig, *, ram_bytes: int) -> Changes:
    """Rules change while the store runs; which tiers there are, in which order and where, changes with a restart.

    RAM has the memory that it began with, `ram_bytes`, and grows up to that; a disk grows as it likes.
    """
    if [tier.kind for tier in old.tier] != [tier.kind for tier in new.tier]:
        were, are = (", ".join(tier.kind for tier in config.tier) for config in (old, new))
        return Changes(new.model_copy(update={"tier": old.tier}), [TakesRestart("tier", were, are)])
    refused: list[TakesRestart] = []
    tiers = [_kept_in_place(number, *pair, refused) for number, pair in enumerate(zip(old.tier, new.tier, strict=True))]
    ram = tiers[0]
    if isinstance(ram, RamTier) and ram.max_bytes > ram_bytes:
        refused.append(TakesRestart("tier[0].max_bytes", size_text(ram_bytes), size_text(ram.max_bytes)))
        tiers[0] = ram.model_copy(update={"max_bytes": ram_bytes})
    return Changes(new.model_copy(update={"tier": tuple(tiers)}), refused)


def _kept_in_place(number: int, old: TierConfig, new: TierConfig, refused: list[TakesRestart]) -> TierConfig:
    """The new rules for the old place."""
    moved = [key for key in old.fixed if getattr(old, key) != getattr(new, key)]
    refused += [TakesRestart(f"tier[{number}].{key}", "the old one", "another") for key in moved]
    return new.model_copy(update={key: getattr(old, key) for key in moved})
