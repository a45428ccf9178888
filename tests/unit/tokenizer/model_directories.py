"""Small tokenizers, trained here, and Hugging Face model directories around them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FIXTURES = Path(__file__).parent / "fixtures"

CORPUS = [
    "The weir measures and regulates the flow of the river.",
    "What is the weather in Paris today? It is sunny, 21 degrees.",
    "Größe, naïve café, 東京の天気, Привет мир, 🙂🙃, emoji and accents.",
    'def f(x):\n    return {"name": "get_weather", "arguments": {"city": "Paris"}}\n',
] * 8

SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
TURNS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>"]


@cache
def byte_level_json() -> str:
    """A byte-level BPE, as GPT-2, Llama 3 and Qwen have; it adds no special token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*SPECIAL.values(), *TURNS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


@cache
def metaspace_json() -> str:
    """A BPE with sentencepiece's conventions and byte fallback, as Llama 2, Mistral and Gemma have; it adds `<s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=[*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]
    )
    saved = json.loads(tokenizer.to_str())
    # The byte tokens are ordinary pieces; only while training they had to be kept whole.
    saved["added_tokens"] = [token for token in saved["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(saved, ensure_ascii=False)


def with_truncation(tokenizer_json: str, max_length: int) -> str:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length)
    return str(tokenizer.to_str())


def fixture_template(name: str) -> str:
    # A final newline is an editor's, not the model's.
    return (FIXTURES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def write_model(
    directory: Path,
    *,
    tokenizer_json: str | None = None,
    template: Any = None,
    jinja_file: str | None = None,
    context: int | None = 4096,
    **config: Any,
) -> Path:
    """A model directory without weights. `template` is what tokenizer_config.json holds as `chat_template`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer_json or byte_level_json(), encoding="utf-8")
    tokenizer_config = {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast", **config}
    if template is not None:
        tokenizer_config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    if jinja_file is not None:
        (directory / "chat_template.jinja").write_text(jinja_file, encoding="utf-8")
    if context is not None:
        (directory / "config.json").write_text(json.dumps({"max_position_embeddings": context}), encoding="utf-8")
    return directory


def added_token(content: str, **flags: bool) -> dict[str, Any]:
    """One entry of `added_tokens_decoder`."""
    defaults = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **defaults, **flags}
