"""Writes a trained checkpoint as a Hugging Face directory, and checks that transformers computes the same logits.

The directory appears whole: it is written beside its place and then moved there. A model card that is there stays.

example:
  python -m deploy.models.train.export --work /tmp/demo --shape demo --out deploy/models/demo
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from .chat import END_OF_TEXT, TURN_END
from .model import Llama
from .shape import SHAPES, Shape
from .tokenizer import write_tokenizer

_KEPT_FILES = ("README.md",)


def hf_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers' LlamaConfig needs to rebuild the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layer_count,
        "num_attention_heads": shape.head_count,
        "num_key_value_heads": shape.kv_head_count,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_position_embeddings,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": shape.norm_eps,
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Greedy by default. A turn's end ends an answer, and so does a text's end."""
    turn_end, text_end = tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)
    return {"do_sample": False, "eos_token_id": [turn_end, text_end], "pad_token_id": text_end}


def load_trained(work: Path, shape_name: str) -> Llama:
    """The model of the last checkpoint in bfloat16."""
    model = Llama(SHAPES[shape_name]).bfloat16()
    saved = torch.load(work / f"{shape_name}.pt", weights_only=True)
    model.load_state_dict(saved["optimizer"]["masters"])
    return model


def write_directory(model: Llama, shape: Shape, tokenizer: Tokenizer, directory: Path) -> None:
    """All files of the Hugging Face directory, without a model card."""
    directory.mkdir(parents=True)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    for name, value in (("config", hf_config(shape, tokenizer)), ("generation_config", generation_config(tokenizer))):
        (directory / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(tokenizer, directory, shape.max_position_embeddings)


@torch.no_grad()
def check_same_logits(model: Llama, shape: Shape, directory: Path) -> float:
    """The largest difference between our float32 logits and transformers' over one prompt; asserts that it is tiny."""
    wide = Llama(shape)  # made anew: a model that was bfloat16 has lost its rotary tables' last digits
    wide.load_state_dict(model.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": "What is a weir?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    token_ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(token_ids).logits
    difference = float((wide(token_ids) - theirs).abs().max())
    assert difference < 1e-3, f"transformers computes other logits: they differ by {difference}"
    return difference


def replace_directory(new: Path, place: Path) -> None:
    """Moves the new directory to its place, with the old one's kept files, in two renames."""
    old = place.with_name(place.name + ".old")
    for name in _KEPT_FILES:
        if (place / name).exists():
            shutil.copy2(place / name, new / name)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory with the checkpoint and tokenizer.json")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="demo")
    parser.add_argument("--out", type=Path, required=True, help="the Hugging Face directory to write or replace")
    arguments = parser.parse_args()
    new = arguments.out.with_name(arguments.out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    model = load_trained(arguments.work, arguments.shape)
    tokenizer = Tokenizer.from_file(str(arguments.work / "tokenizer.json"))
    write_directory(model, SHAPES[arguments.shape], tokenizer, new)
    difference = check_same_logits(model, SHAPES[arguments.shape], new)
    replace_directory(new, arguments.out)
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{arguments.out}: {size} parameters, logits within {difference:.1e} of transformers'")


if __name__ == "__main__":
    main()
