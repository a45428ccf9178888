from __future__ import annotations

import json
from pathlib import Path

import pytest

from weir_chassis.settings import SettingsError, load_settings
from weir_tokenizer.settings import ModelSource, TokenizerSettings

MODELS = "WEIR_TOKENIZER_MODELS"


def load(monkeypatch: pytest.MonkeyPatch, models: str, **others: str) -> TokenizerSettings:
    monkeypatch.setenv(MODELS, models)
    for name, value in others.items():
        monkeypatch.setenv(f"WEIR_TOKENIZER_{name.upper()}", value)
    return load_settings(TokenizerSettings)


A, B = ModelSource(path=Path("/a")), ModelSource(path=Path("/b/c=d"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=/a", {"x": A}),
        (" x = /a , y=/b/c=d, ", {"x": A, "y": B}),
        ('{"x": "/a", "y": {"path": "/b/c=d"}}', {"x": A, "y": B}),
        (
            '{"x": {"path": "/a", "revision": "main", "max_prompt_tokens": 7}}',
            {"x": ModelSource(path=Path("/a"), revision="main", max_prompt_tokens=7)},
        ),
    ],
)
def test_models_are_pairs_or_json(monkeypatch: pytest.MonkeyPatch, text: str, expected: dict[str, ModelSource]) -> None:
    assert load(monkeypatch, text).models == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/a",
        "=/a",
        "x=",
        "x=/a,x=/b",
        "{x}",
        "{}",
        "[]",
        '{"x": 3}',
        '{"x": {"revision": "r"}}',
        '{"x": {"path": "/a", "pth": 1}}',
        '{"x": {"path": "/a", "max_prompt_tokens": 0}}',
        json.dumps({"x" * 129: "/a"}),
    ],
)
def test_anything_else_names_the_variable(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(SettingsError, match=MODELS):
        load(monkeypatch, text)


def test_models_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODELS, raising=False)
    with pytest.raises(SettingsError, match=MODELS):
        load_settings(TokenizerSettings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_text_bytes", "0"),
        ("max_text_bytes", str(17 << 20)),
        ("threads", "0"),
        ("max_pending", "0"),
        ("cache_bytes", "-1"),
        ("render_seconds", "0"),
        ("max_prompt_tokens", "0"),
        ("max_txt_bytes", "1"),
    ],
)
def test_a_number_out_of_its_limits_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"WEIR_TOKENIZER_{name.upper()}"):
        load(monkeypatch, "x=/a", **{name: value})


def test_a_models_own_limit_goes_before_the_one_for_all() -> None:
    settings = TokenizerSettings.model_validate({"models": {"x": "/a"}, "max_prompt_tokens": 9})
    assert settings.prompt_tokens_of(A) == 9
    assert settings.prompt_tokens_of(ModelSource(path=Path("/a"), max_prompt_tokens=3)) == 3


def test_a_copy_keeps_the_models() -> None:
    settings = TokenizerSettings.model_validate({"models": {"x": {"path": "/a", "revision": "r"}}})
    assert settings.replace(threads=7).models == settings.models
