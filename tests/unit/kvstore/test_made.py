"""What the file of tiers says is what the shared tiers do."""

from __future__ import annotations

import pytest

from servers import redis_server
from unit.kvstore.redis_store import KIB, block
from weir_chassis.server import new_chassis
from weir_chassis.settings import SettingsError
from weir_kvstore import tiers_config
from weir_kvstore.hop import Arrivals
from weir_kvstore.tiers.peer import made as peer_made
from weir_kvstore.tiers.redis import made as redis_made


def config_of(text: str) -> tuple[tiers_config.TiersConfig, tiers_config.TierConfig]:
    config = tiers_config.parse('[[tier]]\nkind = "ram"\n[[tier]]\n' + text)
    return config, config.tier[1]


async def test_the_redis_tier_is_told_its_rules_and_told_them_anew() -> None:
    with redis_server() as server:
        text = f'kind = "redis"\nurl = "{server.url}"\nmax_bytes = {8 * KIB}\npolicy = "lfu"\nttl = "1h"\n'
        config, tier_config = config_of(text + f"[tenants.acme]\nmax_bytes = {2 * KIB}\n")
        assert isinstance(tier_config, tiers_config.RedisTier)
        tier = redis_made.make(tier_config, config, new_chassis("kvstore"))
        await tier.open()
        report = tier.report()
        assert (report.capacity_bytes, report.policy, report.ttl_seconds) == (8 * KIB, "lfu", 3600)
        for number in (1, 2, 3):
            assert await tier.put(*block(number, tenant="acme"))
        assert tier.counters.evicted == 1, "its quota"
        config, tier_config = config_of(text)
        assert isinstance(tier_config, tiers_config.RedisTier)
        redis_made.tell(tier, tier_config, config)
        for number in (4, 5, 6):
            assert await tier.put(*block(number, tenant="acme"))
        assert tier.counters.evicted == 1, "it has none any more"
        await tier.close()


async def test_a_url_that_is_none_names_the_tier() -> None:
    config, tier_config = config_of('kind = "redis"\nurl = "redis://host:port/x"\n')
    assert isinstance(tier_config, tiers_config.RedisTier)
    with pytest.raises(SettingsError, match="the url of the redis tier"):
        redis_made.make(tier_config, config, new_chassis("kvstore"))


async def test_the_peer_tier_reaches_its_address() -> None:
    _, tier_config = config_of('kind = "peer"\naddress = "127.0.0.1:1"\n')
    assert isinstance(tier_config, tiers_config.PeerTier)
    tier = peer_made.make(tier_config, new_chassis("kvstore"), Arrivals())
    await tier.open()
    assert await tier.get(block(1)[0].address) is None
    assert tier.report().fault
    await tier.close()
