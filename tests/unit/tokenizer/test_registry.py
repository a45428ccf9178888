from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unit.tokenizer.conftest import NOW
from unit.tokenizer.model_directories import write_model
from weir_chassis.errors import InvalidArgument, ModelNotFound
from weir_chassis.settings import SettingsError
from weir_tokenizer.encoding_cache import EncodingCache
from weir_tokenizer.registry import Registry, load_registry
from weir_tokenizer.settings import TokenizerSettings


def registry(models: dict[str, Any], **settings: Any) -> Registry:
    checked = TokenizerSettings.model_validate({"models": models, **settings})
    return load_registry(checked, EncodingCache(1 << 16), lambda: NOW)


def test_models_are_found_by_name(tmp_path: Path) -> None:
    two = registry({"b": write_model(tmp_path / "b"), "a": {"path": write_model(tmp_path / "a"), "revision": "mine"}})
    assert two.names == ["a", "b"]
    assert two.find("a").identity.revision == "mine"
    assert two.find("b").identity.model == "b"
    assert [model.identity.model for model in two.select("")] == ["a", "b"]
    assert [model.identity.model for model in two.select("b")] == ["b"]


def test_an_unknown_model_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        registry({"a": write_model(tmp_path)}).find("gpt")
    assert caught.value.metadata == {"known": "a"}


def test_no_name_is_the_only_model_or_an_error(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    assert registry({"a": directory}).find("").identity.model == "a"
    with pytest.raises(InvalidArgument, match=r"model: empty.* there are 2"):
        registry({"a": directory, "b": directory}).find("")


def test_a_name_that_no_model_can_have_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="129 bytes, the limit is 128"):
        registry({"a": write_model(tmp_path)}).find("x" * 129)


def test_models_do_not_share_encodings(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "plain")
    other = write_model(tmp_path / "other", eos_token="weir")
    two = registry({"plain": plain, "other": other})
    encodings = [two.find(name).encode(["weir"], ["t"], add_special_tokens=False) for name in ("plain", "other")]
    assert encodings[0] != encodings[1]


def test_limits_come_from_the_operator_first(tmp_path: Path) -> None:
    directory = write_model(tmp_path, context=4096)
    models = {"own": {"path": directory, "max_prompt_tokens": 5}, "all": directory}
    limited = registry(models, max_prompt_tokens=9, max_text_bytes=77)
    assert limited.find("own").limits.max_prompt_tokens == 5
    assert limited.find("all").limits.max_prompt_tokens == 9
    assert limited.find("all").limits.max_text_bytes == 77


def test_every_model_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    bad_template = write_model(tmp_path / "t", jinja_file="{% for %}")
    bad_json = write_model(tmp_path / "j")
    (bad_json / "tokenizer.json").write_text("{")
    good = write_model(tmp_path / "g")
    with pytest.raises(SettingsError) as caught:
        registry({"t": bad_template, "j": bad_json, "none": tmp_path / "nowhere", "g": good})
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["WEIR_TOKENIZER_MODELS", name] for name in ("t", "j", "none")]
    assert f"{bad_template / 'chat_template.jinja'}, line 1" in lines[0]
    assert str(bad_json / "tokenizer.json") in lines[1]
    assert "no such directory" in lines[2]
