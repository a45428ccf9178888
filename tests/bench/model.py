"""The measured model: hidden 576, 30 layers, 9 heads, 3 KV heads, intermediate 1536, vocabulary 49152; random bf16."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from bench.workload import VOCAB_SIZE

SPECIAL = ["<|endoftext|>", "<|start|>", "<|end|>"]
_BOS, _EOS = 1, 2


def make_model(directory: Path) -> Path:
    """Write the Hugging Face directory, unless it is there. About 270 MB."""
    if not (directory / "config.json").is_file():
        print(f"  making the model in {directory}", flush=True)
        directory.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(directory)
        _write_weights(directory)
    return directory


def _write_weights(directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        pad_token_id=_EOS,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    path = directory / "config.json"
    said = json.loads(path.read_text())
    # The names that some peers' older transformers know.
    said |= {"rope_theta": 100000.0, "torch_dtype": "bfloat16"}
    path.write_text(json.dumps(said, indent=1))


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE of exactly VOCAB_SIZE tokens with nothing to train: all bytes, then pairs of them in order.

    Returns the ids and the merges. No workload encodes text, but every peer wants a tokenizer that it can load.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    pairs = list(product(alphabet, alphabet))[: VOCAB_SIZE - len(SPECIAL) - len(alphabet)]
    tokens = [*SPECIAL, *alphabet, *(left + right for left, right in pairs)]
    assert len(tokens) == len(set(tokens)) == VOCAB_SIZE
    return {token: index for index, token in enumerate(tokens)}, pairs


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ids, merges = vocabulary()
    tokenizer = Tokenizer(models.BPE(ids, merges))
    digits: Any = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {
        "unk_token": SPECIAL[0],
        "bos_token": SPECIAL[_BOS],
        "eos_token": SPECIAL[_EOS],
        "pad_token": SPECIAL[_EOS],
    }
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(said, indent=1))
