from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unit.tokenizer.model_directories import added_token, write_model
from weir_tokenizer.model_files import InvalidModelError, load_tokenizer, read_model_files


def write(directory: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    (directory / name).write_text(text, encoding="utf-8")


CORRUPT: dict[str, tuple[str, Any, str]] = {
    "tokenizer.json is cut": ("tokenizer.json", '{"version": "1.0", "model": {', "tokenizer.json: "),
    "tokenizer.json is empty": ("tokenizer.json", "", "tokenizer.json: "),
    "tokenizer.json is another's": ("tokenizer.json", {"model": {"type": "Nonsense"}}, "tokenizer.json: "),
    "tokenizer_config.json is cut": ("tokenizer_config.json", "{", "tokenizer_config.json: not JSON"),
    "tokenizer_config.json is a list": ("tokenizer_config.json", [], "tokenizer_config.json: not a JSON object"),
    "config.json nests too deep": ("config.json", "[" * 100_000, "config.json: not JSON"),
    "chat_template is a number": ("tokenizer_config.json", {"chat_template": 3}, "chat_template is neither"),
    "a named template has no name": (
        "tokenizer_config.json",
        {"chat_template": [{"template": "x"}]},
        "chat_template is neither",
    ),
    "added tokens without content": (
        "tokenizer_config.json",
        {"added_tokens_decoder": {"x": {}}},
        "added_tokens_decoder",
    ),
    "added tokens of no kind": ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_corrupt_file_is_named(case: str, tmp_path: Path) -> None:
    name, content, words = CORRUPT[case]
    write(write_model(tmp_path), name, content)
    with pytest.raises(InvalidModelError) as caught:
        files = read_model_files(tmp_path)
        load_tokenizer(files)
        files.templates()
    assert words in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (write_model(tmp_path) / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidModelError, match=r"chat_template\.jinja: "):
        read_model_files(tmp_path).templates()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="nowhere: no such directory"):
        read_model_files(tmp_path / "nowhere")
    with pytest.raises(InvalidModelError, match=r"tokenizer\.json: no such file"):
        read_model_files(tmp_path)


def test_a_directory_with_tokenizer_json_alone_will_do(tmp_path: Path) -> None:
    write_model(tmp_path, context=None)
    (tmp_path / "tokenizer_config.json").unlink()
    files = read_model_files(tmp_path)
    assert (files.templates(), files.special_tokens(), files.context_tokens()) == ({}, {}, None)
    assert load_tokenizer(files).get_vocab_size() > 256


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"max_position_embeddings": 8192}, {"model_max_length": 131072}, 8192),
        ({"text_config": {"max_position_embeddings": 4096}}, {}, 4096),
        ({"n_positions": 1024}, {}, 1024),
        ({}, {"model_max_length": 2048}, 2048),
        ({"max_position_embeddings": None}, {"model_max_length": 10**30}, None),
        ({"max_position_embeddings": -1}, {"model_max_length": 1e30}, None),
    ],
)
def test_the_length_of_the_context(
    config: dict[str, Any], tokenizer_config: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    write_model(tmp_path, context=None, **tokenizer_config)
    write(tmp_path, "config.json", config)
    assert read_model_files(tmp_path).context_tokens() == expected


def test_templates_name_the_file_they_are_from(tmp_path: Path) -> None:
    write_model(tmp_path, template=[{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}])
    origin = str(tmp_path / "tokenizer_config.json")
    assert read_model_files(tmp_path).templates() == {"default": ("a", origin), "rag": ("b", origin)}
    write(tmp_path, "chat_template.jinja", "c")
    assert read_model_files(tmp_path).templates() == {"default": ("c", str(tmp_path / "chat_template.jinja"))}


def test_added_tokens_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    write_model(tmp_path, added_tokens_decoder={"9001": added_token("<b>"), "900": added_token("<a>")})
    assert [(id_, token.content) for id_, token in read_model_files(tmp_path).added_tokens()] == [
        (900, "<a>"),
        (9001, "<b>"),
    ]
