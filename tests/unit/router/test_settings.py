"""The environment is the only configuration, and a wrong one names itself."""

from __future__ import annotations

import pytest

from weir_chassis.settings import SettingsError, load_settings
from weir_router.settings import RouterSettings


def test_addresses_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_ROUTER_EXECUTORS", "gpu-0:7000, gpu-1:7000,")
    monkeypatch.setenv("WEIR_ROUTER_TOKENIZERS", "tok:7000")
    settings = load_settings(RouterSettings)
    assert settings.executors == ("gpu-0:7000", "gpu-1:7000")
    assert settings.tokenizers == ("tok:7000",)
    assert settings.postprocessors == ()
    assert settings.default_deadline_seconds == 600.0


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("WEIR_ROUTER_EXECUTORS", "a:1,b:1,a:1", "listed twice"),
        ("WEIR_ROUTER_MAX_RUNNING", "0", "greater than or equal to 1"),
        ("WEIR_ROUTER_MAX_WAITING", "-1", "greater than or equal to 0"),
        ("WEIR_ROUTER_MAX_PENDING_TOKENS", "many", "valid integer"),
        ("WEIR_ROUTER_NO_PROGRESS_SECONDS", "0", "greater than 0"),
        ("WEIR_ROUTER_DEFAULT_DEADLINE_SECONDS", "nan", "86400"),
        ("WEIR_ROUTER_REDIS_LEASE_SECONDS", "2", "less than three times"),
        ("WEIR_ROUTER_RETAIN_MAX_SECONDS", "5", "WEIR_ROUTER_RETAIN_DEFAULT_SECONDS"),
        ("WEIR_ROUTER_REDIS_STORE", "a b", "match pattern"),
        ("WEIR_ROUTER_MAX_RUNING", "5", "did you mean WEIR_ROUTER_MAX_RUNNING?"),
    ],
)
def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as caught:
        load_settings(RouterSettings)
    assert says in str(caught.value)


def test_the_longest_pause_is_not_shorter_than_the_first() -> None:
    with pytest.raises(ValueError, match="RECONNECT_MAX_SECONDS"):
        RouterSettings(reconnect_min_seconds=2.0, reconnect_max_seconds=1.0)
