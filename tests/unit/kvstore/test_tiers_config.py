from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_chassis.quantities import duration_text, parse_duration, parse_size, size_text
from weir_chassis.toml_config import ConfigError
from weir_kvstore import tiers_config
from weir_kvstore.tenants import Quota
from weir_kvstore.tiers_config import (
    DiskTier,
    PeerTier,
    RamTier,
    RedisTier,
    TakesRestart,
    TiersConfig,
    diff,
    parse,
    render,
)

GIB = 1 << 30
RAM_BYTES = 3 * GIB // 2
WHOLE = """
min_prefix_tokens = 64
[[tier]]
kind = "ram"
max_bytes = "1.5GiB"
policy = "s3fifo"
ttl = "1h30m"
[[tier]]
kind = "disk"
path = "/var/lib/weir"
fsync = "commit-batch"
reads = "buffered"
bandwidth_bytes_per_second = "200MiB"
ttl = "never"
[[tier]]
kind = "redis"
url = "redis://user:secret@host:6379/0"
[[tier]]
kind = "peer"
address = "store-2:7703"
admission = "saved_seconds"
[tenants.acme]
max_bytes = { ram = "1GiB", disk = 5 }
share = 2.5
[tenants.labs]
pool = "shared"
[tenants.shared]
max_bytes = "2GiB"
[tenants."*"]
share = 0.5
"""


def test_the_example_is_right() -> None:
    assert tiers_config.__doc__ is not None
    config = parse(tiers_config.__doc__.partition("\n\n")[2].rpartition("\n\n")[0].replace("\n    ", "\n"))
    assert [tier.kind for tier in config.tier] == ["ram", "disk"]
    assert config.quotas("disk").of("acme") == Quota(50 * GIB, 2)


def test_what_is_left_out_is_a_caching_first_deployment() -> None:
    ram, disk = parse('[[tier]]\nkind = "ram"\n[[tier]]\nkind = "disk"\npath = "/kv"').tier
    assert isinstance(ram, RamTier)
    assert isinstance(disk, DiskTier)
    assert (ram.policy, ram.ttl, ram.max_bytes) == ("lfu", 6 * 3600, GIB)
    assert (disk.policy, disk.ttl, disk.fsync, disk.reads) == ("fifo", 24 * 3600, "none", "direct")
    assert parse("") == TiersConfig()


def test_all_of_it_is_read() -> None:
    config = parse(WHOLE)
    ram, disk, redis, peer = config.tier
    assert isinstance(ram, RamTier)
    assert isinstance(disk, DiskTier)
    assert isinstance(redis, RedisTier)
    assert isinstance(peer, PeerTier)
    assert (config.min_prefix_tokens, ram.max_bytes, ram.ttl, ram.policy) == (64, GIB * 3 // 2, 5400, "s3fifo")
    assert (disk.path, disk.ttl, disk.bandwidth_bytes_per_second) == (Path("/var/lib/weir"), None, 200 << 20)
    assert (disk.fsync, disk.reads) == ("commit-batch", "buffered")
    assert (redis.admission, peer.admission, peer.address) == ("second_use", "saved_seconds", "store-2:7703")


def test_tenants_are_charged_to_their_pool() -> None:
    config = parse(WHOLE)
    assert [config.account(name) for name in ("acme", "labs", "shared", "stranger", "")] == [
        "acme", "shared", "shared", "stranger", "",
    ]  # fmt: skip
    ram, redis = config.quotas("ram"), config.quotas("redis")
    assert ram.of("acme") == Quota(GIB, 2.5)
    assert redis.of("acme") == Quota(None, 2.5)
    assert redis.of("shared") == Quota(2 * GIB)
    assert ram.of("stranger") == Quota(None, 0.5)
    assert parse('[tenants."*"]\npool = "all"').account("anybody") == "all"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a =", "not TOML"),
        ("tiers = []", "tiers: there is no such key here"),
        ("tier = []", r"tier\[0\].kind: the first is 'ram'"),
        ('[[tier]]\nkind = "disk"\npath = "/kv"', r"tier\[0\].kind: the first is 'ram'"),
        (
            '[[tier]]\nkind = "ram"\nbandwidth_bytes_per_second = "1MiB"',
            r"^tier\[0\].bandwidth_bytes_per_second='1MiB': nothing is copied into RAM in the background; leave it out",
        ),
        ("[[tier]]", r"tier\[0\]: kind is missing; one of 'ram', 'disk'"),
        ('[[tier]]\nkind = "floppy"', r"tier\[0\].*floppy.*'ram', 'disk', 'redis', 'peer'"),
        ('[[tier]]\nkind = "ram"\n[[tier]]\nkind = "ram"', "tier: more than one of kind ram; the limit is one"),
        ('[[tier]]\nkind = "ram"\npath = "/kv"', r"tier\[0\].path: there is no such key"),
        ('[[tier]]\nkind = "ram"\nmax_bytes = "4GB"', r"tier\[0\].max_bytes='4GB': .* no size such as 512MiB"),
        ('[[tier]]\nkind = "ram"\nmax_bytes = 0', r"tier\[0\].max_bytes=0: .*greater than or equal to 1"),
        ('[[tier]]\nkind = "ram"\nmax_bytes = true', r"tier\[0\].max_bytes=True: .* no number"),
        ('[[tier]]\nkind = "ram"\nttl = "6 hours"', r"tier\[0\].ttl='6 hours': .* no duration such as 30m"),
        ('[[tier]]\nkind = "ram"\nttl = 0', r"tier\[0\].ttl=0: .*greater than 0"),
        ('[[tier]]\nkind = "ram"\npolicy = "mru"', r"tier\[0\].policy='mru': .*'lru', 'lfu', 'fifo' or 's3fifo'"),
        ('[[tier]]\nkind = "ram"\nadmission = "some"', r"tier\[0\].admission='some': .*'second_use'"),
        ('[[tier]]\nkind = "ram"\n[[tier]]\nkind = "disk"', r"tier\[1\].path: is missing"),
        ('[[tier]]\nkind = "ram"\n[[tier]]\nkind = "disk"\npath = "kv"', r"tier\[1\].path='kv': must begin with /"),
        ('[[tier]]\nkind = "ram"\n[[tier]]\nkind = "peer"\naddress = "here"', r"tier\[1\].address='here'"),
        (
            '[[tier]]\nkind="ram"\n[[tier]]\nkind="redis"\nurl="redis://x"\npolicy="s3fifo"',
            r"tier\[1\].policy='s3fifo'",
        ),
        ("min_prefix_tokens = -1", "min_prefix_tokens=-1: .*greater than or equal to 0"),
        ("[tenants.a]\nmax_bytes = { floppy = 1 }", "tenants.a.max_bytes.floppy='floppy': .*'ram', 'disk' or 'redis'"),
        ("[tenants.a]\nshare = 0", "tenants.a.share=0: .*greater than 0"),
        (
            '[tenants.a]\npool = "b"\nshare = 2',
            "tenants.a: with pool = 'b', max_bytes and share belong under tenants.b",
        ),
        ('[tenants.a]\npool = "b"\n[tenants.b]\npool = "c"', "tenants.a.pool: 'b' is in a pool itself"),
        (f"[tenants.{'x' * 129}]", "tenants.x+…: 129 bytes, the limit is 128"),
    ],
)
def test_a_mistake_names_its_key_and_limit(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(text)


def test_a_password_is_not_told() -> None:
    with pytest.raises(ConfigError) as told:
        parse('[[tier]]\nkind = "ram"\n[[tier]]\nkind = "redis"\nurl = "http://user:secret@host"')
    assert "tier[1].url" in str(told.value)
    assert "secret" not in str(told.value) + render(parse(WHOLE))


def test_what_is_rendered_says_the_same() -> None:
    text = render(parse(WHOLE))
    assert 'max_bytes = "1536MiB"' in text
    assert 'ttl = "5400s"' not in text
    assert parse(text.replace("…", "user:secret")) == parse(WHOLE)


@given(st.integers(1, 1 << 50))
def test_sizes_are_read_as_they_are_written(size_bytes: int) -> None:
    assert parse_size(size_text(size_bytes)) == size_bytes


@given(st.none() | st.integers(1, 10**7))
def test_durations_are_read_as_they_are_written(seconds: int | None) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


def test_rules_change_while_it_runs() -> None:
    old, new = parse(WHOLE), parse(WHOLE.replace("1h30m", "10s").replace("s3fifo", "lru").replace("64", "32"))
    changes = diff(old, new, ram_bytes=RAM_BYTES)
    assert changes.config == new != old
    assert not changes.refused


def test_places_stay_where_they_are() -> None:
    old, new = parse(WHOLE), parse(WHOLE.replace("/var/lib/weir", "/elsewhere").replace("never", "9h"))
    changes = diff(old, new, ram_bytes=RAM_BYTES)
    assert changes.refused == [TakesRestart("tier[1].path", "the old one", "another")]
    assert str(changes.refused[0]) == "tier[1].path: the old one stays in force; another takes a restart"
    disk = changes.config.tier[1]
    assert isinstance(disk, DiskTier)
    assert (disk.path, disk.ttl) == (Path("/var/lib/weir"), 9 * 3600)
    synced = diff(old, parse(WHOLE.replace("commit-batch", "none")), ram_bytes=RAM_BYTES)
    assert [refused.key for refused in synced.refused] == ["tier[1].fsync"]
    read = diff(old, parse(WHOLE.replace('"buffered"', '"direct"')), ram_bytes=RAM_BYTES)
    assert [refused.key for refused in read.refused] == ["tier[1].reads"]
    new = parse(WHOLE.replace("secret", "changed").replace("store-2", "store-3"))
    moved = diff(old, new, ram_bytes=RAM_BYTES).refused
    assert [refused.key for refused in moved] == ["tier[2].url", "tier[3].address"]
    assert "changed" not in "".join(map(str, moved))


def test_another_order_of_tiers_takes_a_restart() -> None:
    old, new = parse(WHOLE), parse('min_prefix_tokens = 5\n[[tier]]\nkind = "ram"\n')
    changes = diff(old, new, ram_bytes=RAM_BYTES)
    assert changes.config.tier == old.tier
    assert changes.config.min_prefix_tokens == 5
    assert changes.refused == [TakesRestart("tier", "ram, disk, redis, peer", "ram")]


@pytest.mark.parametrize(("began", "wanted", "holds"), [(8, 8, 8), (8, 1, 1), (8, 9, 8), (1, 8, 1)])
def test_memory_grows_no_further_than_what_it_began_with(began: int, wanted: int, holds: int) -> None:
    """`began`, `wanted` and `holds` in MiB; it was shrunk to 1 MiB since."""
    file = '[[tier]]\nkind = "ram"\nmax_bytes = "{}MiB"\npolicy = "{}"'
    new = parse(file.format(wanted, "fifo"))
    changes = diff(parse(file.format(1, "lru")), new, ram_bytes=began << 20)
    (ram,) = changes.config.tier
    assert isinstance(ram, RamTier)
    assert (ram.max_bytes, ram.policy) == (holds << 20, "fifo"), "all else of it holds"
    refused = [TakesRestart("tier[0].max_bytes", f"{began}MiB", f"{wanted}MiB")] if wanted > began else []
    assert changes.refused == refused


def test_a_disk_grows_and_shrinks() -> None:
    old = parse(WHOLE)
    for size in ("1TiB", "1MiB"):
        new = parse(WHOLE.replace('path = "/var/lib/weir"', f'path = "/var/lib/weir"\nmax_bytes = "{size}"'))
        assert new != old
        changes = diff(old, new, ram_bytes=RAM_BYTES)
        assert (changes.config, changes.refused) == (new, [])
