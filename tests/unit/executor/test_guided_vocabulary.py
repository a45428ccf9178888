from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models_fixture import EOS, VOCAB_SIZE
from unit.executor.guide_tokens import PADDING, ids_of, save_tokenizer, token_bytes
from unit.postprocess.vocabularies import byte_level, llama
from weir_executor.guided.vocabulary import read_token_bytes


@pytest.mark.parametrize("family", [byte_level(), llama()], ids=["byte level", "byte fallback"])
def test_the_bytes_are_those_that_postprocess_gives(family: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    family.tokenizer.save(str(path))
    wanted = [b"" if b"\0" in data else data for data in family.vocabulary.plain_bytes]
    assert read_token_bytes(path, len(wanted)) == wanted
    assert sum(map(bool, wanted)) > 250


def test_special_tokens_padding_and_nul_are_no_text() -> None:
    found = token_bytes()
    assert len(found) == VOCAB_SIZE
    assert (found[EOS], found[PADDING], found[ids_of("\0")[0]]) == (b"", b"", b"")
    assert found[ids_of("é")[0]] == b"\xc3"
    assert b"<call>" in found


def test_a_model_may_have_fewer_rows_than_its_tokenizer_tokens(tmp_path: Path) -> None:
    assert read_token_bytes(save_tokenizer(tmp_path), 100) == token_bytes()[:100]


def test_a_unigram_vocabulary_is_a_list(tmp_path: Path) -> None:
    decoder = {"type": "Metaspace", "replacement": "▁"}
    spec = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁hi", -1.0], ["x", -2.0]]}, "decoder": decoder}
    added = [{"id": 0, "content": "<unk>", "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**spec, "added_tokens": added}))
    assert read_token_bytes(tmp_path / "tokenizer.json", 4) == [b"", b" hi", b"x", b""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "is not a tokenizer"),
        ("[]", "is not a tokenizer"),
        ("{", "Expecting"),
        ('{"model": {"vocab": {}}, "decoder": {"type": "ByteLevel"}}', "no token that is text"),
        ('{"model": {"vocab": {"a": 0}}, "decoder": {"type": "WordPiece"}}', "WordPiece"),
    ],
)
def test_what_no_guide_can_be_held_to_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_token_bytes(path, 4)
