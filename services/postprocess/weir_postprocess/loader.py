"""Reads `tokenizer.json` and what is added to it into a `Vocabulary`, and proves that it decodes as the library does.

A loader of our own and not the tokenizer service's: the services share contracts, not code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from weir.inference.v1.model_revision import tokenizer_hash
from weir.inference.v1.token_bytes import byte_of, decoder_steps, has_byte_fallback
from weir_chassis.errors import DataCorrupt, Unsupported
from weir_postprocess.detokenizer import Detokenizer
from weir_postprocess.special_tokens import add_special_tokens
from weir_postprocess.vocabulary import Vocabulary, make_vocabulary

# Enough tokens to meet each kind beside each other; few enough that an error names a short range.
_CHECKED_TOGETHER = 1024


def load_vocabulary(directory: Path) -> Vocabulary:
    """The vocabulary of a model directory. Blocks for about a second per 100,000 tokens.

    Raises DataCorrupt for a file that cannot be read, Unsupported for a decoder that cannot be streamed.
    """
    path = directory / "tokenizer.json"
    try:
        data = path.read_bytes()
        spec: Mapping[str, Any] = json.loads(data)
        tokenizer = Tokenizer.from_buffer(data)
        add_special_tokens(tokenizer, directory)
        hash_ = tokenizer_hash(directory)
    except Exception as error:  # the library raises plain Exception for whatever is wrong inside
        raise DataCorrupt(f"{path} is not a tokenizer: {error}") from error
    try:
        vocabulary = _vocabulary(tokenizer, spec.get("decoder"), hash_)
    except ValueError as error:
        raise Unsupported(f"{path}: {error}") from error
    _check_against(tokenizer, vocabulary, path)
    return vocabulary


def _vocabulary(tokenizer: Tokenizer, decoder: Mapping[str, Any] | None, hash_: str) -> Vocabulary:
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    # As the library does: a token is special by its content, not by its id.
    special = {added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special}
    return make_vocabulary(
        tokens,
        frozenset(i for i, token in enumerate(tokens) if token in special),
        decoder_steps(decoder),
        has_byte_tokens=has_byte_fallback(decoder),
        hash_=hash_,
    )


def _check_against(tokenizer: Tokenizer, vocabulary: Vocabulary, path: Path) -> None:
    """A decoder that does other than what we made of it must stop the process, not garble its answers.

    The library is asked what tokens add to a text that is there already, as an output is added to its prompt. Byte
    tokens are left out: one after another they are no text, and there we differ on purpose (detokenizer.py).
    """
    ids = [i for i, token in enumerate(vocabulary.tokens) if token and byte_of(token) is None]
    context = next((i for i in ids if _is_text(vocabulary.token_bytes[i])), None)
    if context is None:
        raise Unsupported(f"{path}: no token is text by itself")
    before = len(tokenizer.decode([context], skip_special_tokens=False))
    for start in range(0, len(ids), _CHECKED_TOGETHER):
        chunk = ids[start : start + _CHECKED_TOGETHER]
        detokenizer = Detokenizer(vocabulary, skip_special_tokens=False)
        ours = detokenizer.replay(chunk) + detokenizer.flush()
        if ours != tokenizer.decode([context, *chunk], skip_special_tokens=False)[before:]:
            raise Unsupported(f"{path}: tokens {chunk[0]} to {chunk[-1]} do not decode as their decoder's parts say")


def _is_text(data: bytes) -> bool:
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False
