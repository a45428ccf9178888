"""A byte-level tokenizer for the tiny models' vocabulary, and guides compiled for it right here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from models_fixture import EOS, VOCAB_SIZE
from weir.inference.v1.token_bytes import BYTE_OF_CHARACTER
from weir_executor.guided.compile import Compiler, Tokens
from weir_executor.guided.guide import Guide, GuideKind
from weir_executor.guided.state import XgrammarGuide
from weir_executor.guided.vocabulary import read_token_bytes

_SPECIAL = ["<unk>", "<s>", "</s>"]
_CHARACTERS = {value: character for character, value in BYTE_OF_CHARACTER.items()}
# Tokens of several bytes, that begin and end in the middle of what a grammar tells apart.
_JSON_PARTS = ['{"', '":', '":"', '","', '"}', '",', "},", "[]", "]}", "tr", "true", "nu", "ll", "10", "23", "\n "]
_WORDS = [" a", "ab", "the", "yes", "no", "ye", "s,", "é", "<t", "<tool>", "</tool>", "tool>"]
_TOOL = "<call>"  # added, and no special token
PADDING = 319  # a row of the model that no token of the tokenizer has

assert _SPECIAL.index("</s>") == EOS


def save_tokenizer(model_dir: Path) -> Path:
    """A `tokenizer.json` whose ids are those of the tiny models; the last ones have no token."""
    texts = [bytes([value]) for value in range(256)] + [text.encode() for text in (*_JSON_PARTS, *_WORDS)]
    tokens = [*_SPECIAL, *("".join(_CHARACTERS[byte] for byte in text) for text in texts)]
    added = [{"id": i, "content": token, "special": True} for i, token in enumerate(_SPECIAL)]
    added.append({"id": len(tokens), "content": _TOOL, "special": False})
    path = model_dir / "tokenizer.json"
    path.write_text(
        json.dumps(
            {
                "added_tokens": added,
                "decoder": {"type": "ByteLevel"},
                "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": []},
            }
        )
    )
    return path


@cache
def tokens() -> Tokens:
    return Tokens(token_bytes())


@cache
def token_bytes() -> list[bytes]:
    with TemporaryDirectory() as directory:
        return read_token_bytes(save_tokenizer(Path(directory)), VOCAB_SIZE)


def text_of(token_ids: list[int]) -> str:
    """What postprocess would make of an output: special tokens and padding have no bytes."""
    return b"".join(token_bytes()[token_id] for token_id in token_ids).decode()


def ids_of(text: str) -> list[int]:
    """The bytes of a text, one token each."""
    return [len(_SPECIAL) + byte for byte in text.encode()]


def compiled(kind: GuideKind | Guide, text: str = "") -> XgrammarGuide:
    guide = kind if isinstance(kind, Guide) else Guide(kind, text)
    return XgrammarGuide(guide, Compiler(tokens()).compile(guide), tokens())
