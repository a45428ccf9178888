"""The model that all fakes share: a token is a byte, and one more ends an output.

It answers a prompt with the prompt's own tokens, so a test reads what it wrote.
"""

from __future__ import annotations

from weir.inference.v1.model_pb2 import ModelVersion

EOS = 256
EOS_TEXT = "<|end|>"
VOCAB_SIZE = 257
BLOCK_SIZE = 16
MAX_MODEL_LEN = 512
MAX_TEXT_BYTES = 65_536

VERSION = ModelVersion(model="bytes", revision="r1", tokenizer_hash="0" * 32)


def encode(text: str) -> list[int]:
    return list(text.encode())


def token_bytes(token_id: int) -> bytes:
    """The end-of-sequence token has none, nor has what pads the vocabulary."""
    return bytes([token_id]) if token_id < EOS else b""


def shown(token_id: int) -> bytes:
    """A token as log-probabilities name it."""
    return EOS_TEXT.encode() if token_id == EOS else token_bytes(token_id)
