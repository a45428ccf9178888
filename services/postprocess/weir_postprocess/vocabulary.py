"""A model's tokens as bytes: read by every output, changed by none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weir_chassis.errors import InvalidArgument
from weir_postprocess.decoder import Step, piece_bytes


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
    steps: Sequence[Step]
    # Whether characters without a token of their own come as byte tokens such as `<0xE2>`.
    has_byte_tokens: bool
    tokenizer_hash: str

    def __len__(self) -> int:
        return len(self.tokens)

    def check_ids(self, field: str, token_ids: Sequence[int]) -> None:
        """Raises InvalidArgument for an id that is not in the vocabulary."""
        if token_ids and (largest := max(token_ids)) >= len(self.tokens):
            raise InvalidArgument(field, f"token id {largest} is not below the vocabulary's size, {len(self.tokens)}")

    def first_bytes(self, token_id: int) -> bytes:
        """The bytes of a token that begins a text: some decoders leave out a space there."""
        token = self.tokens[token_id]
        return b"" if token is None else piece_bytes(self.steps, token, first=True)


def make_vocabulary(
    tokens: Sequence[str | None],
    special_ids: frozenset[int],
    steps: Sequence[Step],
    *,
    has_byte_tokens: bool,
    hash_: str,
) -> Vocabulary:
    token_bytes = [b"" if token is None else piece_bytes(steps, token, first=False) for token in tokens]
    plain_bytes = [b"" if i in special_ids else data for i, data in enumerate(token_bytes)]
    return Vocabulary(tokens, token_bytes, plain_bytes, special_ids, steps, has_byte_tokens, hash_)
