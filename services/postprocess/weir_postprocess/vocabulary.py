"""A model's tokens as bytes: read by every output, changed by none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weir.inference.v1.token_bytes import Step, piece_bytes
from weir_chassis.errors import InvalidArgument

# Ids from the vocabulary's size up to this have no text: a model has more rows than its tokenizer has tokens where they
# were padded to a round number, and may draw one. An id past every int32 is no row of any model but a caller's bug.
MAX_TOKEN_IDS: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id. Immutable; any number of outputs and threads may read it."""

    # None for an id between others that names no token; it has no bytes.
    tokens: Sequence[str | None]
    # The bytes of each token.
    token_bytes: Sequence[bytes]
    # The same with the special tokens left out.
    plain_bytes: Sequence[bytes]
    special_ids: frozenset[int]
    # Whether characters without a token of their own come as byte tokens such as `<0xE2>`.
    has_byte_tokens: bool
    tokenizer_hash: str

    def __len__(self) -> int:
        return len(self.tokens)

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes; none for an id that the tokenizer does not know."""
        return self.token_bytes[token_id] if token_id < len(self.token_bytes) else b""

    def plain_bytes_of(self, token_id: int) -> bytes:
        """The same, and none for a special token."""
        return self.plain_bytes[token_id] if token_id < len(self.plain_bytes) else b""


def check_ids(field: str, token_ids: Sequence[int]) -> None:
    """Raises InvalidArgument for an id that no model has."""
    if token_ids and (largest := max(token_ids)) >= MAX_TOKEN_IDS:
        raise InvalidArgument(field, f"token id {largest} is not below {MAX_TOKEN_IDS}")


def make_vocabulary(
    tokens: Sequence[str | None],
    special_ids: frozenset[int],
    steps: Sequence[Step],
    *,
    has_byte_tokens: bool,
    hash_: str,
) -> Vocabulary:
    token_bytes = [b"" if token is None else piece_bytes(steps, token) for token in tokens]
    plain_bytes = [b"" if i in special_ids else data for i, data in enumerate(token_bytes)]
    return Vocabulary(tokens, token_bytes, plain_bytes, special_ids, has_byte_tokens, hash_)
