"""LoRA adapters with seeded random weights, as PEFT writes them; and the base model with one merged in, as oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models_fixture import tiny_model

ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."


def save_adapter(
    directory: Path,
    base_dir: Path,
    *,
    seed: int = 1,
    rank: int = 4,
    targets: Sequence[str] = ALL_TARGETS,
    strength: float = 0.3,
    **config: Any,
) -> Path:
    """Strong enough that greedy tokens differ from the base's. `config` replaces what `adapter_config.json` says."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in sorted(load_file(base_dir / "model.safetensors").items()):
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets and weight.dim() == 2:
            rows, columns = weight.shape
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * strength
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * strength
    said: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base_dir),
        "revision": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        **config,
    }
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(said))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def merged_model(directory: Path, base_dir: Path, adapter_dir: Path) -> Path:
    """W + scale · B A, written out as a checkpoint of its own: what needs no adapter to compute the same."""
    shutil.copytree(base_dir, directory)
    config = json.loads((adapter_dir / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (sqrt(config["r"]) if config["use_rslora"] else config["r"])
    weights, adapter = load_file(base_dir / "model.safetensors"), load_file(adapter_dir / "adapter_model.safetensors")
    for name in [name for name in adapter if name.endswith(".lora_A.weight")]:
        module = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        up = adapter[name.replace("lora_A", "lora_B")]
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + scale * (up @ adapter[name])
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def edit_adapter(adapter_dir: Path, tensors: Mapping[str, torch.Tensor | None] | None = None, **config: Any) -> None:
    """Change single tensors (None takes one out), or what the configuration says."""
    path = adapter_dir / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if tensors:
        path = adapter_dir / "adapter_model.safetensors"
        changed = {**load_file(path), **tensors}
        save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)


def tensor_name(layer: int, module: str, part: str) -> str:
    return f"{_PREFIX}model.layers.{layer}.{module}.lora_{part}.weight"


def base_of(family: str) -> Path:
    return tiny_model(family)
