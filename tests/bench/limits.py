"""What the machine allows: bytes read per second bound a decode step, BF16 operations per second bound a prefill.

Both are measured on the spot, by a small C++ program where there is a compiler and by PyTorch in any case; the higher
figure counts. A decode step at batch 1 reads every weight once; a prefill multiplies every token by every weight.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.environment import with_bench

_SOURCE = Path(__file__).with_name("limits.cpp")
_SECONDS = 120.0  # compiling and measuring take a few


@dataclass(frozen=True, slots=True)
class Limits:
    bytes_per_second: float
    operations_per_second: float  # BF16; a multiply-add is two

    def best_of(self, other: Limits) -> Limits:
        return Limits(
            max(self.bytes_per_second, other.bytes_per_second),
            max(self.operations_per_second, other.operations_per_second),
        )


def measure() -> Limits:
    """In processes of their own, so that no thread of theirs stays behind."""
    limits = _words([sys.executable, "-m", "bench.limits"])
    compiled = _compiled()
    return limits.best_of(compiled) if compiled else limits


def decode_seconds(config: dict[str, Any], limits: Limits) -> float:
    """The least that a token at batch 1 can take: each weight is read once, in two bytes."""
    return 2 * weights(config) / limits.bytes_per_second


def prefill_seconds(config: dict[str, Any], tokens: int, limits: Limits) -> float:
    """The least that a prompt can take: every layer's products, causal attention, the logits of one token.

    Of the last layer only keys and values are needed, but for that one token.
    """
    hidden, head, layers = config["hidden_size"], _head_dim(config), config["num_hidden_layers"]
    products = tokens * (layers - 1) * _layer_weights(config) + _layer_weights(config)
    keys_and_values = (tokens - 1) * 2 * hidden * head * config["num_key_value_heads"]
    attended = (layers - 1) * tokens * (tokens + 1) // 2 + tokens  # pairs of a token and one that it sees
    attention = attended * 2 * head * config["num_attention_heads"]  # scores, and the weighted sum
    operations = 2 * int(products + keys_and_values + attention + config["vocab_size"] * hidden)
    return operations / limits.operations_per_second


def weights(config: dict[str, Any]) -> int:
    """That one step reads, norms left out. The embedding is tied: it is read as the output layer."""
    logits = config["vocab_size"] * config["hidden_size"]
    return int(config["num_hidden_layers"] * _layer_weights(config) + logits)


def _layer_weights(config: dict[str, Any]) -> int:
    hidden, head = config["hidden_size"], _head_dim(config)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    return int(attention + 3 * hidden * config["intermediate_size"])


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _compiled() -> Limits | None:
    """By the C++ program; None where nothing compiles it."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "limits"
        options = ["-O3", "-march=native", "-ffast-math", "-pthread", str(_SOURCE), "-o", str(program)]
        done = subprocess.run([compiler, *options], capture_output=True, timeout=_SECONDS, check=False)
        return _words([str(program)]) if done.returncode == 0 else None


def _words(command: list[str]) -> Limits:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True, env=with_bench())
    read, operations = map(float, done.stdout.split())
    return Limits(read, operations)


def _through_torch() -> Limits:
    import torch

    memory = torch.ones(1 << 26)  # 256 MB, more than any cache
    read = memory.numel() * 4 / _least_seconds(memory.sum)
    side = 2048
    left, right = torch.ones(side, side, dtype=torch.bfloat16), torch.ones(side, side, dtype=torch.bfloat16)
    return Limits(read, 2 * side**3 / _least_seconds(lambda: left @ right))


def _least_seconds(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def read_config(model_dir: Path) -> dict[str, Any]:
    return dict(json.loads((model_dir / "config.json").read_text()))


if __name__ == "__main__":
    measured = _through_torch()
    print(f"{measured.bytes_per_second:.6g} {measured.operations_per_second:.6g}")
