"""The demo model's tokenizer with the clock's tokens added: a model directory for routers that make text themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.router import clock_token
from weir_local.placement import find_model


def write_model(directory: Path) -> Path:
    """A model of the Llama shape, without weights: nobody computes with it."""
    demo = find_model(None)
    directory.mkdir(exist_ok=True)
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    assert len(vocabulary) <= clock_token.FIRST, len(vocabulary)
    for token_id in range(clock_token.FIRST, clock_token.FIRST + clock_token.STEPS):
        vocabulary[clock_token.text(token_id).replace(" ", "Ġ")] = token_id
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((demo / "config.json").read_text())
    size = {"vocab_size": clock_token.FIRST + clock_token.STEPS, "max_position_embeddings": 1 << 17}
    (directory / "config.json").write_text(json.dumps(config | size))
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        shutil.copy(demo / name, directory / name)
    return directory
