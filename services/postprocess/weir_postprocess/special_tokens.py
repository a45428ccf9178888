"""The tokens that the files beside `tokenizer.json` add to it, by the rules of transformers 5.23.

    tokenizer_config.json      `added_tokens_decoder`, in the order of its ids; then what is only named (`eos_token`, …)
    special_tokens_map.json    names in older directories: heard only where there is no `added_tokens_decoder`

The tokenizer service reads the same files by the same rules, because an id must mean the same token to both: what is
added gets the next free id, so the order counts. A test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

_NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def add_special_tokens(tokenizer: Tokenizer, directory: Path) -> None:
    """Raises ValueError for a file that is not what its name says, OSError for one that cannot be read. Names it."""
    config = _read_object(directory / "tokenizer_config.json")
    present = tokenizer.get_added_tokens_decoder()
    missing = [token for id_, token in _listed(config) if id_ not in present]
    known = {token.content for token in [*present.values(), *missing]}
    for text in _only_named(config, directory):
        if text not in known:
            known.add(text)
            missing.append(AddedToken(text, special=True))
    tokenizer.add_tokens(missing)


def _listed(config: Mapping[str, Any]) -> list[tuple[int, AddedToken]]:
    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, Mapping):
        raise ValueError("tokenizer_config.json: added_tokens_decoder is not a JSON object")
    try:
        return sorted(((int(id_), AddedToken(**token)) for id_, token in entries.items()), key=lambda pair: pair[0])
    except (TypeError, ValueError) as error:
        raise ValueError(f"tokenizer_config.json: added_tokens_decoder: {error}") from error


def _only_named(config: Mapping[str, Any], directory: Path) -> list[str]:
    """The special tokens by role, a model's own roles (`image_token`), and those that have none."""
    settings = dict(config)
    if "added_tokens_decoder" not in config:
        settings |= _read_object(directory / "special_tokens_map.json")
    tokens = {key: value for key, value in settings.items() if key in _NAMED}
    tokens |= {key: value for key, value in config.items() if key.endswith("_token") and key not in _NAMED}
    own = config.get("extra_special_tokens")
    tokens |= own if isinstance(own, dict) else {}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    texts = map(_content, [*tokens.values(), *(extra if isinstance(extra, list) else [])])
    return [text for text in texts if text is not None]


def _content(token: object) -> str | None:
    """A token is written as its text, or as an object that holds the text and how it is matched."""
    match token:
        case str(text) | {"content": str(text)}:
            return text
        case _:
            return None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: not a JSON object")
    return value
