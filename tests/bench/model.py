"""The measured model: hidden 576, 30 layers, 9 heads, 3 KV heads, intermediate 1536, vocabulary 49152; random bf16."""

from __future__ import annotations

from pathlib import Path


def make_model(directory: Path) -> Path:
    """Write the Hugging Face directory, unless it is there. About 270 MB. The tokenizer is a bare word list."""
    if (directory / "model.safetensors").is_file():
        return directory
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=1,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    words = {f"t{index}": index for index in range(config.vocab_size)}
    Tokenizer(WordLevel(words, unk_token="t0")).save(str(directory / "tokenizer.json"))
    return directory
