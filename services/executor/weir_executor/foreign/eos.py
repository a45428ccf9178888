"""Which tokens end a sequence, as a model's own files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_eos(model_dir: Path, model: Mapping[str, Any]) -> frozenset[int]:
    """As `generation_config.json` says, else `model`, its `config.json`: one id or several. Raises ValueError."""
    path = model_dir / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = generation.get("eos_token_id", model.get("eos_token_id"))
    ids = found if isinstance(found, list) else [found]
    eos = frozenset(each for each in ids if isinstance(each, int))
    if not eos:
        raise ValueError(f"{model_dir}: no eos_token_id in generation_config.json or config.json")
    return eos
