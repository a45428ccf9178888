from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from unit.postprocess.vocabularies import END, TOOL, byte_level, llama
from weir.inference.v1.model_revision import tokenizer_hash
from weir.inference.v1.token_bytes import decoder_steps
from weir_chassis.errors import DataCorrupt, InvalidArgument, Unsupported
from weir_postprocess import loader
from weir_postprocess.loader import load_vocabulary
from weir_postprocess.vocabulary import check_ids


def save(tokenizer: Tokenizer, directory: Path) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_bytes_of_tokens() -> None:
    family = byte_level()
    vocabulary, id_of = family.vocabulary, family.id_of
    assert b"".join(vocabulary.token_bytes[i] for i in family.ids("naïve 😀")) == "naïve 😀".encode()
    assert vocabulary.token_bytes[id_of(END)] == END.encode()
    assert vocabulary.plain_bytes[id_of(END)] == b""
    assert vocabulary.plain_bytes[id_of(TOOL)] == TOOL.encode()
    assert vocabulary.token_bytes[id_of("日本")] == "日本".encode()
    assert vocabulary.special_ids == {id_of(END)}


def test_bytes_of_byte_tokens() -> None:
    family = llama()
    assert [family.vocabulary.token_bytes[i] for i in family.byte_ids(b"\xe2A")] == [b"\xe2", b"A"]
    assert family.vocabulary.has_byte_tokens


def test_the_hash_is_the_contracts(tmp_path: Path) -> None:
    save(byte_level().tokenizer, tmp_path)
    assert load_vocabulary(tmp_path).tokenizer_hash == tokenizer_hash(tmp_path)


def test_an_id_between_others_may_name_no_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 3}, unk_token="a"))
    vocabulary = load_vocabulary(save(tokenizer, tmp_path))
    assert vocabulary.tokens == ["a", None, None, "b"]
    assert [vocabulary.bytes_of(i) for i in range(6)] == [b" a", b"", b"", b" b", b"", b""]
    assert [vocabulary.plain_bytes_of(i) for i in (3, 4, 2**31 - 1)] == [b" b", b"", b""]


def test_no_model_has_an_id_of_32_bits() -> None:
    check_ids("ids", [])
    check_ids("ids", [0, 2**31 - 1])
    with pytest.raises(InvalidArgument, match="ids: token id 2147483648 is not below 2147483648"):
        check_ids("ids", [0, 2**31])


@pytest.mark.parametrize("text", [None, "", "{", "{}", json.dumps({"model": {"type": "BPE"}})])
def test_what_is_not_a_tokenizer_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataCorrupt, match=r"tokenizer\.json is not a tokenizer"):
        load_vocabulary(tmp_path)


def test_a_decoder_that_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(Unsupported, match="WordPiece"):
        load_vocabulary(save(tokenizer, tmp_path))


def test_a_tokenizer_without_text_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"âĤ": 0}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(Unsupported, match="no token is text by itself"):
        load_vocabulary(save(tokenizer, tmp_path))


def test_a_decoder_that_does_other_than_we_think_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "decoder_steps", lambda _: decoder_steps(None))
    with pytest.raises(Unsupported, match="do not decode as their decoder's parts say"):
        load_vocabulary(save(byte_level().tokenizer, tmp_path))
