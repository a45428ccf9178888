from __future__ import annotations

from pathlib import Path

import pytest

from weir_chassis.settings import SettingsError, load_settings
from weir_kvstore.settings import KvStoreSettings
from weir_kvstore.tiers_config import RamTier


def test_the_defaults_are_sound() -> None:
    settings = load_settings(KvStoreSettings)
    assert (settings.capacity_bytes, settings.max_staged_bytes) == (1024**3, None)
    assert settings.default_lease_seconds == 10  # what the contract says


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_KVSTORE_CAPACITY_BYTES", "1000")
    monkeypatch.setenv("WEIR_KVSTORE_MAX_STAGED_BYTES", "1000")
    monkeypatch.setenv("WEIR_KVSTORE_PUT_IDLE_SECONDS", "0.5")
    settings = load_settings(KvStoreSettings)
    assert (settings.capacity_bytes, settings.max_staged_bytes, settings.put_idle_seconds) == (1000, 1000, 0.5)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CAPACITY_BYTES", "0"),
        ("CAPACITY_BYTES", "1 GiB"),
        ("MAX_STAGED_BYTES", "0"),
        ("MAX_STAGED_BYTES", str(1024**3 + 1)),
        ("MAX_BLOCKS", "0"),
        ("MAX_LIVE_LEASES", "65537"),
        ("MAX_OPEN_PUTS", "-1"),
        ("DEFAULT_LEASE_SECONDS", "60.5"),
        ("DEFAULT_LEASE_SECONDS", "0"),
        ("PUT_IDLE_SECONDS", "0"),
        ("SWEEP_SECONDS", "nan"),
        ("SWEEP_SECOND", "1"),
    ],
)
def test_a_bad_value_names_itself(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"WEIR_KVSTORE_{variable}", value)
    with pytest.raises(SettingsError, match=variable):
        load_settings(KvStoreSettings)


def test_tiers_are_told_by_settings_or_by_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEIR_KVSTORE_CAPACITY_BYTES", "4096")
    assert [tier.kind for tier in load_settings(KvStoreSettings).tiers().tier] == ["ram"]
    monkeypatch.setenv("WEIR_KVSTORE_DISK_PATH", str(tmp_path))
    ram, disk = load_settings(KvStoreSettings).tiers().tier
    assert (ram.kind, disk.kind) == ("ram", "disk")
    assert isinstance(ram, RamTier)
    assert ram.max_bytes == 4096
    monkeypatch.setenv("WEIR_KVSTORE_REDIS_URL", "redis://:secret@there:6379")
    monkeypatch.setenv("WEIR_KVSTORE_PEER_ADDRESS", "there:7703")
    settings = load_settings(KvStoreSettings)
    assert [tier.kind for tier in settings.tiers().tier] == ["ram", "disk", "redis", "peer"]
    assert "secret" not in repr(settings) + repr(settings.tiers())
    (tmp_path / "tiers.toml").write_text("min_prefix_tokens = 7")
    monkeypatch.setenv("WEIR_KVSTORE_TIERS_FILE", str(tmp_path / "tiers.toml"))
    with pytest.raises(SettingsError, match=r"with TIERS_FILE.*CAPACITY_BYTES, DISK_PATH, REDIS_URL, PEER_ADDRESS"):
        load_settings(KvStoreSettings)
    for told in ("CAPACITY_BYTES", "DISK_PATH", "REDIS_URL", "PEER_ADDRESS"):
        monkeypatch.delenv(f"WEIR_KVSTORE_{told}")
    assert load_settings(KvStoreSettings).tiers().min_prefix_tokens == 7
    (tmp_path / "tiers.toml").write_text("min_prefix_tokens = 'x'")
    with pytest.raises(SettingsError, match=r"tiers\.toml.*min_prefix_tokens"):
        load_settings(KvStoreSettings)
