"""One tokenizer of each family, trained here on a few lines, with the vocabulary that the service makes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from weir_postprocess.loader import load_vocabulary
from weir_postprocess.vocabulary import Vocabulary

LINES = [
    "the weir regulates the flow of the river, and the river goes on",
    "tokens go in and text comes out; the text is whole: naïve café, 你好 世界, привет",
    "User: hello there\n\nAssistant: hello, hello!\n",
]
# No deadline: the first example trains a tokenizer, and the machine may be busy. Five families share the examples.
PROPERTY = settings(max_examples=40)
END, TOOL = "<|end|>", "<tool>"
# What is in no merge: each of these is split between tokens.
RARE = "😀🏳️‍🌈𝔘ßࠀ한"


@dataclass(frozen=True)
class Family:
    tokenizer: Tokenizer
    vocabulary: Vocabulary

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def id_of(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        assert token_id is not None, token
        return token_id

    def text(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The reference: what the ids add, by the library, to a text that has begun, as an output to its prompt."""
        context = [self.id_of("on" if self.tokenizer.token_to_id("on") is not None else "o")]
        before: str = self.tokenizer.decode(context)
        text: str = self.tokenizer.decode([*context, *ids], skip_special_tokens=skip_special_tokens)
        assert text.startswith(before)
        return text.removeprefix(before)

    def byte_ids(self, data: bytes) -> list[int]:
        return [self.id_of(f"<0x{value:02X}>") for value in data]


def texts(max_size: int = 40) -> st.SearchStrategy[str]:
    alphabet = st.one_of(st.sampled_from(sorted(set("".join(LINES)) | set(RARE))), st.characters(codec="utf-8"))
    plain = st.text(alphabet, max_size=max_size)
    # U+FFFD is left out, so that a test can tell it from what replaces bytes.
    return st.lists(st.one_of(plain, st.sampled_from(LINES)), max_size=4).map("".join).map(_without_replacement)


def chunkings(ids: list[int]) -> st.SearchStrategy[list[list[int]]]:
    """Any way to cut the ids into rows."""
    cuts = st.lists(st.integers(0, len(ids)), max_size=len(ids)).map(sorted)
    return cuts.map(lambda at: [ids[a:b] for a, b in zip([0, *at], [*at, len(ids)], strict=True)])


@cache
def byte_level() -> Family:
    """GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens([AddedToken(TOOL, special=False, normalized=False), AddedToken("日本", normalized=False)])
    return family(tokenizer)


@cache
def llama() -> Family:
    """Llama 2 and Mistral: spaces are U+2581, unknown characters are byte tokens, one leading space is stripped."""
    return _sentencepiece(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    )


@cache
def gemma() -> Family:
    return _sentencepiece(decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


@cache
def metaspace() -> Family:
    return _sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))


@cache
def words() -> Family:
    """No decoder: tokens are joined by spaces."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "the", "weir", "river", "flows", "on"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([END])
    return family(tokenizer)


FAMILIES = {"byte_level": byte_level, "llama": llama, "gemma": gemma, "metaspace": metaspace, "words": words}
BYTE_TOKENS = {name: FAMILIES[name] for name in ("llama", "gemma", "metaspace")}


def family(tokenizer: Tokenizer) -> Family:
    with TemporaryDirectory() as directory:
        tokenizer.save(str(Path(directory) / "tokenizer.json"))
        return Family(tokenizer, load_vocabulary(Path(directory)))


def _sentencepiece(decoder: decoders.Decoder) -> Family:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"], show_progress=False, min_frequency=1)
    trained.train_from_iterator(LINES, trainer)
    model: dict[str, Any] = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", *(f"<0x{value:02X}>" for value in range(256))]
    tokens += [token for token in model["vocab"] if token != "<unk>"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return family(tokenizer)


def _without_replacement(text: str) -> str:
    return text.replace("\N{REPLACEMENT CHARACTER}", "")
