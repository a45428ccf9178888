"""The peer tier as the file of tiers says."""

from __future__ import annotations

from weir_chassis.server import Chassis
from weir_kvstore.hop import Arrivals
from weir_kvstore.tier import Tier
from weir_kvstore.tiers.peer.tier import PeerPlace, PeerTier
from weir_kvstore.tiers_config import PeerTier as PeerConfig


def make(tier: PeerConfig, chassis: Chassis, arrivals: Arrivals) -> Tier:
    """`arrivals` came from another store, and go into none."""
    place = PeerPlace(tier.address)
    return PeerTier(place, chassis.connect, arrivals, clock=chassis.clock, random=chassis.random)
