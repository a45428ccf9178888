"""The Redis tier as the file of tiers says."""

from __future__ import annotations

from weir_chassis.server import Chassis
from weir_chassis.settings import SettingsError
from weir_kvstore.tier import Tier
from weir_kvstore.tiers.redis.books import Rules
from weir_kvstore.tiers.redis.tier import RedisPlace, RedisTier
from weir_kvstore.tiers_config import RedisTier as RedisConfig
from weir_kvstore.tiers_config import TiersConfig


def make(tier: RedisConfig, config: TiersConfig, chassis: Chassis) -> Tier:
    """Raises SettingsError for a URL that is none."""
    place = RedisPlace(tier.url, tier.name)
    try:
        return RedisTier(place, _rules(tier, config), clock=chassis.clock, random=chassis.random)
    except ValueError as error:
        raise SettingsError(f"TIERS_FILE: the url of the redis tier: {error}") from None


def tell(tier: Tier, tier_config: RedisConfig, config: TiersConfig) -> None:
    """These rules hold from now on."""
    assert isinstance(tier, RedisTier), tier
    tier.apply(_rules(tier_config, config))


def _rules(tier: RedisConfig, config: TiersConfig) -> Rules:
    return Rules(tier.max_bytes, tier.policy, tier.ttl, config.quotas("redis"))
