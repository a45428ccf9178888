from __future__ import annotations

from typing import Self

import pytest
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from weir_chassis.settings import ServiceSettings, SettingsError, load_settings, variable_names


class ToySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="WEIR_TOY_")

    batch_size: int = Field(default=8, ge=1, le=64)
    queue_size: int = Field(default=64, ge=1)
    peers: list[str] = Field(default_factory=list)
    key: SecretStr = SecretStr("")

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Self:
        if self.queue_size < self.batch_size:
            raise ValueError("WEIR_TOY_QUEUE_SIZE must hold at least WEIR_TOY_BATCH_SIZE")
        return self


def problem_of(monkeypatch: pytest.MonkeyPatch, **environ: str) -> str:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings(ToySettings)
    return str(caught.value)


def test_defaults_need_nothing() -> None:
    settings = load_settings(ToySettings)
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 0, 0)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIR_TOY_BATCH_SIZE", "16")
    monkeypatch.setenv("WEIR_TOY_PEERS", '["a:1", "b:2"]')
    monkeypatch.setenv("WEIR_OTHER_BATCH_SIZE", "not ours")
    settings = load_settings(ToySettings)
    assert (settings.batch_size, settings.peers) == (16, ["a:1", "b:2"])


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings(ToySettings).port = 1


def test_a_bad_value_names_variable_value_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(monkeypatch, WEIR_TOY_BATCH_SIZE="65", WEIR_TOY_PORT="http")
    assert "WEIR_TOY_BATCH_SIZE='65': Input should be less than or equal to 64" in problem
    assert "WEIR_TOY_PORT='http': Input should be a valid integer" in problem


def test_an_unknown_variable_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(monkeypatch, WEIR_TOY_BATCHSIZE="4")
    assert problem == "WEIR_TOY_BATCHSIZE: no such setting; did you mean WEIR_TOY_BATCH_SIZE?"


def test_all_problems_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(monkeypatch, WEIR_TOY_NONSENSE_AT_ALL="1", WEIR_TOY_PORT="-1")
    assert len(problem.splitlines()) == 2


def test_a_relation_names_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "WEIR_TOY_QUEUE_SIZE must hold" in problem_of(monkeypatch, WEIR_TOY_QUEUE_SIZE="2")


def test_a_list_that_is_no_json_is_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "WEIR_TOY_PEERS: not JSON" in problem_of(monkeypatch, WEIR_TOY_PEERS="a:1,b:2")


def test_an_empty_value_is_not_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "WEIR_TOY_PORT=''" in problem_of(monkeypatch, WEIR_TOY_PORT="")


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keyed(ToySettings):
        key: SecretStr = Field(default=SecretStr(""), max_length=4)

    monkeypatch.setenv("WEIR_TOY_KEY", "hunter2hunter2")
    with pytest.raises(SettingsError) as caught:
        load_settings(Keyed)
    assert "WEIR_TOY_KEY=(secret)" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_long_value_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(problem_of(monkeypatch, WEIR_TOY_PORT="x" * 5000)) < 300


def test_replace_checks_again() -> None:
    settings = load_settings(ToySettings)
    assert settings.replace(port=81).port == 81
    with pytest.raises(ValidationError):
        settings.replace(port=-1)


def test_variable_names() -> None:
    names = variable_names(ToySettings)
    assert names["WEIR_TOY_BATCH_SIZE"] == "batch_size"
    assert names["WEIR_TOY_DRAIN_SECONDS"] == "drain_seconds"
