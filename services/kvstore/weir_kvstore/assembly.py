"""The tiers as their file says: made once, and told anew when it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from weir_chassis.followed_file import FollowedFile
from weir_chassis.server import Chassis
from weir_chassis.settings import SettingsError
from weir_kvstore.bandwidth import Bandwidth
from weir_kvstore.hop import Arrivals
from weir_kvstore.local_tier import LocalTier
from weir_kvstore.mover import Lane
from weir_kvstore.policies.admission import Admission, AdmissionName, make_admission
from weir_kvstore.policies.make import POLICIES
from weir_kvstore.rules import Rules
from weir_kvstore.settings import KvStoreSettings
from weir_kvstore.store import BlockStore, Bounds
from weir_kvstore.tier import Tier
from weir_kvstore.tiers.arena import ArenaSlots
from weir_kvstore.tiers.disk import SegmentSlots
from weir_kvstore.tiers.huge_pages import HugePagesError
from weir_kvstore.tiers.memory import shared_memory
from weir_kvstore.tiers.peer import made as peer
from weir_kvstore.tiers_config import DiskTier, InForce, PeerTier, RamTier, RedisTier, TierConfig, TiersConfig, diff

# A disk holds many times what memory does, in records of some 700 bytes.
_DISK_BLOCKS: Final = 8


class Assembly:
    """A store with the tiers of one configuration, which may change while it runs."""

    def __init__(
        self,
        config: TiersConfig,
        settings: KvStoreSettings,
        chassis: Chassis,
        arena: ArenaSlots,
        arrivals: Arrivals,
        *,
        new_id: Callable[[], str],
    ) -> None:
        """`arena`: RAM's, as big as the configuration says; `arrivals`: what other stores put. Raises SettingsError."""
        self.config = config  # in force
        self.file: FollowedFile[TiersConfig] | None = None  # that is followed
        self._settings = settings
        self._chassis = chassis
        self._arrivals = arrivals
        self._admissions: dict[str, tuple[AdmissionName, Admission]] = {}
        ram_config, *others = config.tier
        assert isinstance(ram_config, RamTier)
        ram = LocalTier("ram", arena, chassis.leases, chassis.random, self._rules(ram_config, config))
        slower = [self._make(tier, config) for tier in others]
        self.store = BlockStore(
            ram,
            self._bounds(config),
            chassis.random,
            new_lease_id=new_id,
            slower=slower,
            lanes=[
                self._lane(ram, tier, position, tier_config)
                for position, (tier, tier_config) in enumerate(zip(slower, others, strict=True))
            ],
            view=arena.view,
        )
        self.store.account = config.account

    def in_force(self) -> InForce:
        return InForce(self.config, self.file.error if self.file is not None else "")

    def apply(self, config: TiersConfig) -> tuple[TiersConfig, Sequence[str]]:
        """The rules hold from now on where they can: what is in force then, and what takes a restart."""
        changes = diff(self.config, config, ram_bytes=self.store.ram.slots.capacity_bytes)
        if changes.config != self.config:
            self.config = changes.config
            self._tell_all(self.config)
        return self.config, [str(refused) for refused in changes.refused]

    def _tell_all(self, config: TiersConfig) -> None:
        self.store.bounds = self._bounds(config)
        self.store.account = config.account
        for tier, tier_config in zip(self.store.tiers, config.tier, strict=True):
            self._tell(tier, tier_config, config)
        for lane, tier_config in zip(self.store.mover.lanes, config.tier[1:], strict=True):
            lane.admission = self._admission(tier_config)
            lane.bandwidth.bytes_per_second = tier_config.bandwidth_bytes_per_second

    def _make(self, tier: TierConfig, config: TiersConfig) -> Tier:
        chassis = self._chassis
        match tier:
            case DiskTier():
                slots = SegmentSlots(tier.path, tier.max_bytes, chassis.clock, fsync=tier.fsync, reads=tier.reads)
                return LocalTier("disk", slots, chassis.leases, chassis.random, self._rules(tier, config))
            case RedisTier():
                from weir_kvstore.tiers.redis import made  # noqa: PLC0415  # its client library is no small thing

                return made.make(tier, config, chassis)
            case PeerTier():
                return peer.make(tier, chassis, self._arrivals)
            case RamTier():
                raise AssertionError("RAM is behind no other tier")

    def _tell(self, tier: Tier, tier_config: TierConfig, config: TiersConfig) -> None:
        if isinstance(tier, LocalTier) and isinstance(tier_config, RamTier | DiskTier):
            tier.apply(self._rules(tier_config, config))
        elif isinstance(tier_config, RedisTier):
            from weir_kvstore.tiers.redis import made  # noqa: PLC0415

            made.tell(tier, tier_config, config)

    def _lane(self, ram: LocalTier, tier: Tier, position: int, config: TierConfig) -> Lane:
        bandwidth = Bandwidth(self._chassis.clock, config.bandwidth_bytes_per_second)
        return Lane(ram, tier, 1 << position, self._admission(config), bandwidth)

    def _rules(self, tier: RamTier | DiskTier, config: TiersConfig) -> Rules:
        in_ram = isinstance(tier, RamTier)
        return Rules(
            max_blocks=self._settings.max_blocks * (1 if in_ram else _DISK_BLOCKS),
            max_bytes=tier.max_bytes,
            ttl_seconds=tier.ttl,
            policy=tier.policy,
            new_policy=POLICIES[tier.policy],
            admission=self._admission(tier),
            quotas=config.quotas(tier.kind),
            max_staged_bytes=self._settings.max_staged_bytes or max(1, tier.max_bytes // 4) if in_ram else None,
        )

    def _admission(self, tier: TierConfig) -> Admission:
        """The same one as long as it is called the same: it remembers."""
        known = self._admissions.get(tier.kind)
        if known is None or known[0] != tier.admission:
            known = self._admissions[tier.kind] = (tier.admission, make_admission(tier.admission))
        return known[1]

    def _bounds(self, config: TiersConfig) -> Bounds:
        return Bounds(self._settings.max_live_leases, config.min_prefix_tokens)


def make_arena(config: TiersConfig, settings: KvStoreSettings, arena_id: str) -> ArenaSlots:
    """RAM for this configuration, where neighbours on this host find it. Raises SettingsError without huge pages."""
    ram = config.tier[0]
    assert isinstance(ram, RamTier)
    try:
        return ArenaSlots(ram.max_bytes, partial(shared_memory, settings.arena_dir, arena_id))
    except HugePagesError as error:
        raise SettingsError(str(error)) from error
