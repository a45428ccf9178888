from __future__ import annotations

from pathlib import Path

import pytest

from weir_chassis.settings import SettingsError, load_settings
from weir_postprocess.settings import PostprocessSettings
from weir_tokenizer.settings import TokenizerSettings


def load(monkeypatch: pytest.MonkeyPatch, models: str) -> PostprocessSettings:
    monkeypatch.setenv("WEIR_POSTPROCESS_MODELS", models)
    return load_settings(PostprocessSettings)


@pytest.mark.parametrize(
    "text",
    [
        "a=/x,b=/y z",
        " a = /x , b = /y z ,",
        '{"a": "/x", "b": "/y z"}',
        '{"a": {"path": "/x", "revision": "r1", "max_prompt_tokens": 8}, "b": "/y z"}',
    ],
)
def test_models(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, text).models == {"a": Path("/x"), "b": Path("/y z")}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least 1"),
        ("a", "'a' is not name=path"),
        ("a=", "'a=' is not name=path"),
        ("=/x", "'=/x' is not name=path"),
        ("a=/x,a=/y", "'a' is named twice"),
        (f"{'n' * 129}=/x", "is not a name of 1 to 128 bytes"),
        ('{"": "/x"}', "'' is not a name of 1 to 128 bytes"),
        ("{", "property name"),
        ("{}", "at least 1"),
        ('{"a": ""}', "'a' is neither a path nor an object of path, max_prompt_tokens, revision"),
        ('{"a": 5}', "'a' is neither a path nor"),
        ('{"a": {"revision": "r1"}}', "'a' is neither a path nor"),
        ('{"a": {"path": "/x", "revison": "r1"}}', "'a' is neither a path nor"),
        ('{"a": {"path": null}}', "'a' is neither a path nor"),
        (",".join(f"m{i}=/x" for i in range(65)), "at most 64"),
    ],
)
def test_wrong_models_name_the_variable(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="WEIR_POSTPROCESS_MODELS") as refused:
        load(monkeypatch, text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text", ["a=/x", '{"a": "/x"}', '{"a": {"path": "/x", "revision": "r", "max_prompt_tokens": 8}}']
)
def test_one_value_serves_the_tokenizer_service_too(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = TokenizerSettings.model_validate({"models": text}).models
    assert load(monkeypatch, text).models == {name: source.path for name, source in tokenizers.items()}


def test_models_are_required() -> None:
    with pytest.raises(SettingsError, match="WEIR_POSTPROCESS_MODELS"):
        load_settings(PostprocessSettings)


def test_a_checked_copy() -> None:
    settings = PostprocessSettings(models={"a": Path("/x")})
    assert settings.replace(max_open_requests=1).models == {"a": Path("/x")}
