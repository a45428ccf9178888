"""The bytes of a model's tokens, as a guide sees them. Read from `tokenizer.json`; needs no tokenizer library.

a token of the vocabulary    its bytes in a text that has begun, which are what postprocess makes of it
a special token, padding     no bytes: a guide never allows it as text
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weir.inference.v1.token_bytes import decoder_steps, piece_bytes


def read_token_bytes(path: Path, vocab_size: int) -> list[bytes]:
    """One entry per row of the model's output, whatever the tokenizer's own size is.

    Takes about a second per 100,000 tokens. Raises ValueError for a file that is no tokenizer, or one whose tokens have
    no bytes of their own; OSError for one that cannot be read.
    """
    try:
        spec = json.loads(path.read_bytes())
        steps = decoder_steps(spec["decoder"])
        special = {added["content"] for added in _added(spec) if added["special"]}
        found = [(i, token) for i, token in _tokens(spec) if 0 <= i < vocab_size and token not in special]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is not a tokenizer: {error!r}") from error
    token_bytes = [b""] * vocab_size
    for token_id, token in found:
        data = piece_bytes(steps, token)
        # The bindings end a token at its first NUL, and would take it for another.
        token_bytes[token_id] = b"" if b"\0" in data else data
    if not any(token_bytes):
        raise ValueError(f"{path.name} has no token that is text")
    return token_bytes


def _tokens(spec: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """Ids and tokens; an added token replaces what the model has under its id."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, Mapping):  # BPE, WordLevel
        yield from ((token_id, token) for token, token_id in vocab.items())
    else:  # Unigram
        yield from ((token_id, piece[0]) for token_id, piece in enumerate(vocab))
    yield from ((added["id"], added["content"]) for added in _added(spec))


def _added(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return spec.get("added_tokens") or ()
