"""What the store is told: `WEIR_KVSTORE_…`."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from weir_chassis.followed_file import read_config
from weir_chassis.settings import ServiceSettings
from weir_kvstore.bounds import MAX_LEASE_SECONDS
from weir_kvstore.tiers_config import DiskTier, PeerTier, RamTier, RedisTier, TierConfig, TiersConfig, parse

# Those that a file of tiers says itself.
_OF_TIERS: Final = ("capacity_bytes", "disk_path", "disk_bytes", "redis_url", "redis_bytes", "peer_address")


class KvStoreSettings(ServiceSettings):
    """One frozen object, made once."""

    model_config = SettingsConfigDict(env_prefix="WEIR_KVSTORE_")

    capacity_bytes: int = Field(default=1024**3, ge=1, description="payload bytes held in memory, staged ones included")
    arena_dir: Path | None = Field(
        default=Path("/dev/shm"),  # noqa: S108  # shared memory, which is what is meant
        description="where neighbours on this host find that memory; empty: it is nobody else's",
    )
    max_staged_bytes: int | None = Field(
        default=None, ge=1, description="of the capacity, what puts may fill before they commit; unset: a quarter"
    )
    max_blocks: int = Field(
        default=1_000_000, ge=1, description="blocks held; the index takes some 500 bytes for each besides its payload"
    )
    max_live_leases: int = Field(default=4096, ge=1, le=65_536, description="read leases at once; one more is refused")
    max_open_puts: int = Field(default=256, ge=1, le=65_536, description="put streams at once; one more is refused")
    default_lease_seconds: float = Field(
        default=10.0, gt=0, le=MAX_LEASE_SECONDS, description="for a request that names none; the contract says 10"
    )
    put_idle_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="a put from which nothing is heard for so long is ended"
    )
    sweep_seconds: float = Field(
        default=0.5, gt=0, le=60, description="how often lapsed leases and idle puts are looked for"
    )

    # As an executor's: about 5 MB; a watcher that comes back later than that starts anew.
    kv_event_log: int = Field(
        default=65_536, ge=1, description="blocks whose events are remembered for a watcher that comes back"
    )

    tiers_file: Path | None = Field(
        default=None,
        description="TOML of tiers, quotas and rules, followed while it runs; unset: as said below",
    )
    tiers_poll_seconds: float = Field(default=1.0, gt=0, le=3600, description="how often that file is looked at")
    trace_file: Path | None = Field(
        default=None, description="what is looked up is written down here, for `weir kv trace`; unset: nowhere"
    )
    trace_max_bytes: int = Field(
        default=64 * 1024**2, ge=4096, le=1 << 40, description="of that file, and of the one before it, `.1`"
    )
    disk_path: Path | None = Field(default=None, description="directory of the disk tier, where no file names one")
    disk_bytes: int = Field(default=16 * 1024**3, ge=1, description="payload bytes held there")
    redis_url: SecretStr | None = Field(default=None, description="of the tier that hosts share; unset: none")
    redis_bytes: int = Field(default=4 * 1024**3, ge=1, description="payload bytes held there, of all hosts together")
    peer_address: str | None = Field(default=None, description="host:port of a kvstore that is asked after all tiers")

    def tiers(self) -> TiersConfig:
        """As the file says, else as these settings do. Raises ConfigError."""
        if self.tiers_file is not None:
            return read_config(self.tiers_file, parse)
        tiers: list[TierConfig] = [RamTier(max_bytes=self.capacity_bytes)]
        if self.disk_path is not None:
            tiers.append(DiskTier(path=self.disk_path, max_bytes=self.disk_bytes))
        if self.redis_url is not None:
            tiers.append(RedisTier(url=self.redis_url.get_secret_value(), max_bytes=self.redis_bytes))
        if self.peer_address is not None:
            tiers.append(PeerTier(address=self.peer_address))
        return TiersConfig(tier=tuple(tiers))

    @field_validator("arena_dir", mode="before")
    @classmethod
    def _none_when_empty(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _tiers_are_told_once(self) -> Self:
        fields = type(self).model_fields
        told = [key for key in _OF_TIERS if getattr(self, key) != fields[key].default]
        if self.tiers_file is not None and told:
            names = ", ".join(name.upper() for name in told)
            raise ValueError(f"with TIERS_FILE, its [[tier]] tables say what {names} would")
        self.tiers()
        return self

    @model_validator(mode="after")
    def _staging_fits(self) -> Self:
        ram = self.tiers().tier[0]
        if isinstance(ram, RamTier) and (self.max_staged_bytes or 0) > ram.max_bytes:
            raise ValueError(f"MAX_STAGED_BYTES must not exceed CAPACITY_BYTES, which is {ram.max_bytes}")
        return self
