from __future__ import annotations

from pathlib import Path

import pytest

from weir_chassis.settings import SettingsError, load_settings
from weir_postprocess.settings import PostprocessSettings


def load(monkeypatch: pytest.MonkeyPatch, models: str) -> PostprocessSettings:
    monkeypatch.setenv("WEIR_POSTPROCESS_MODELS", models)
    return load_settings(PostprocessSettings)


@pytest.mark.parametrize("text", ["a=/x,b=/y z", " a = /x , b = /y z ,"])
def test_models(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, text).models == {"a": Path("/x"), "b": Path("/y z")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least 1"),
        ("a", "'a' is not name=directory"),
        ("a=", "'a=' is not name=directory"),
        ("=/x", "'=/x' is not name=directory"),
        ("a=/x,a=/y", "'a' is there twice"),
        (f"{'n' * 129}=/x", "is not name=directory"),
        (",".join(f"m{i}=/x" for i in range(65)), "at most 64"),
    ],
)
def test_wrong_models_name_the_variable(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="WEIR_POSTPROCESS_MODELS") as refused:
        load(monkeypatch, text)
    assert said in str(refused.value)


def test_models_are_required() -> None:
    with pytest.raises(SettingsError, match="WEIR_POSTPROCESS_MODELS"):
        load_settings(PostprocessSettings)


def test_a_checked_copy() -> None:
    settings = PostprocessSettings(models={"a": Path("/x")})
    assert settings.replace(max_open_requests=1).models == {"a": Path("/x")}
