"""Trains the byte-level BPE tokenizer that both models share, and encodes the corpus with it."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .chat import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START

SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Their ids are 0, 1 and 2."""

_ENCODE_CHUNK = 2000
"""Documents encoded at once: the encoder's own bookkeeping takes far more memory than the ids."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with single digits; every byte has a token, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without_markup(text) for text in texts), trainer)
    assert tokenizer.get_vocab_size() == vocab_size, "the corpus is too small for this vocabulary"
    return tokenizer


def _without_markup(text: str) -> str:
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "")
    return text


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """All documents' ids in one row, [tokens], and where each document starts in it, [documents]."""
    encoded: list[NDArray[np.uint16]] = []
    for begin in range(0, len(texts), _ENCODE_CHUNK):
        items = tokenizer.encode_batch_fast(texts[begin : begin + _ENCODE_CHUNK], add_special_tokens=False)
        encoded += [np.array(item.ids, dtype=np.uint16) for item in items]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    return np.concatenate(encoded), np.cumsum(lengths) - lengths


def write_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json, as transformers reads them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"eos_token": TURN_END, "pad_token": END_OF_TEXT}
    config = {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
            | {"content": token, "special": True}
            for token in SPECIAL_TOKENS
        },
        "additional_special_tokens": [TURN_START, TURN_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        **special,
        "model_max_length": max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", special | {"additional_special_tokens": [TURN_START, TURN_END]})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
