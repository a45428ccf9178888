"""What the files beside tokenizer.json add, held to what the tokenizer service makes of the same directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from weir_chassis.errors import DataCorrupt
from weir_postprocess.detokenizer import Detokenizer
from weir_postprocess.loader import load_vocabulary
from weir_tokenizer.model_files import load_tokenizer, read_model_files

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
WORD = {"content": "<think>", "special": False}
SPECIAL = {"content": "<|im_end|>", "special": True, "normalized": False}


def write(directory: Path, files: dict[str, Any]) -> Path:
    """Three tokens and a special one, id 3; then the files."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "</s>": 2}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<s>", special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


DIRECTORIES: dict[str, tuple[dict[str, Any], list[str], set[str]]] = {
    # Files, the tokens that follow "<s>", and those of all tokens that are special besides it.
    "nothing": ({}, [], set()),
    "listed, in the order of ids": (
        {CONFIG: {"added_tokens_decoder": {"10": SPECIAL, "4": WORD}}},
        ["<think>", "<|im_end|>"],
        {"<|im_end|>"},
    ),
    "listed with an id that is taken": ({CONFIG: {"added_tokens_decoder": {"3": SPECIAL}}}, [], set()),
    "a plain token becomes special": ({CONFIG: {"eos_token": "</s>"}}, [], {"</s>"}),
    "named and known": ({CONFIG: {"bos_token": "<s>"}}, [], set()),
    "named as objects, one twice": (
        {CONFIG: {"pad_token": {"content": "<pad>", "lstrip": False}, "unk_token": "<pad>", "mask_token": None}},
        ["<pad>"],
        {"<pad>"},
    ),
    "a model's own roles come after the usual": (
        {CONFIG: {"image_token": "<img>", "eos_token": "<eos>", "extra_special_tokens": {"video_token": "<vid>"}}},
        ["<eos>", "<img>", "<vid>"],
        {"<eos>", "<img>", "<vid>"},
    ),
    "without a role": (
        {CONFIG: {"additional_special_tokens": ["<x>", {"content": "<y>"}, 5]}},
        ["<x>", "<y>"],
        {"<x>", "<y>"},
    ),
    "of an older directory": (
        {MAP: {"eos_token": "<eos>", "additional_special_tokens": ["<x>"]}, CONFIG: {"eos_token": "<old>"}},
        ["<eos>", "<x>"],
        {"<eos>", "<x>"},
    ),
    "the map is not heard beside a list": (
        {MAP: {"eos_token": "<eos>"}, CONFIG: {"added_tokens_decoder": {}, "sep_token": "<sep>"}},
        ["<sep>"],
        {"<sep>"},
    ),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_both_services_know_the_same_tokens(name: str, tmp_path: Path) -> None:
    files, added, special = DIRECTORIES[name]
    vocabulary = load_vocabulary(write(tmp_path, files))
    assert vocabulary.tokens == ["a", "b", "</s>", "<s>", *added]
    assert {vocabulary.tokens[i] for i in vocabulary.special_ids} == {"<s>", *special}
    tokenizers = load_tokenizer(read_model_files(tmp_path))
    assert [tokenizers.id_to_token(i) for i in range(tokenizers.get_vocab_size())] == vocabulary.tokens
    for i in range(len(vocabulary)):
        plain = Detokenizer(vocabulary, skip_special_tokens=True).add(i)
        assert plain == tokenizers.decode([i]), vocabulary.tokens[i]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({CONFIG: []}, "tokenizer_config.json: not a JSON object"),
        ({MAP: "x"}, "special_tokens_map.json: not a JSON object"),
        ({CONFIG: {"added_tokens_decoder": [WORD]}}, "added_tokens_decoder is not a JSON object"),
        ({CONFIG: {"added_tokens_decoder": {"x": WORD}}}, "added_tokens_decoder: invalid literal"),
        ({CONFIG: {"added_tokens_decoder": {"4": {"content": 5}}}}, "tokenizer_config.json: added_tokens_decoder: "),
        ({CONFIG: {"added_tokens_decoder": {"4": "x"}}}, "tokenizer_config.json: added_tokens_decoder: "),
    ],
)
def test_a_file_that_is_not_what_its_name_says(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataCorrupt) as refused:
        load_vocabulary(write(tmp_path, files))
    assert said in refused.value.message


@pytest.mark.parametrize("text", [b"{", b"\xff"])
def test_a_file_that_is_no_json(text: bytes, tmp_path: Path) -> None:
    (write(tmp_path, {}) / CONFIG).write_bytes(text)
    with pytest.raises(DataCorrupt, match=r"tokenizer_config\.json: not JSON"):
        load_vocabulary(tmp_path)
