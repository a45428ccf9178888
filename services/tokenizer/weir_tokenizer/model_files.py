"""What a Hugging Face model directory says about its tokenizer, read once and checked.

    tokenizer.json                         required; read by `tokenizers`
    tokenizer_config.json                  special tokens, chat templates, model_max_length
    special_tokens_map.json                special tokens of older directories
    chat_template.jinja                    the default template; goes before the ones in tokenizer_config.json
    additional_chat_templates/<name>.jinja further templates
    config.json                            the length of the context

The rules are those of transformers 5.23, so that a directory means the same here as there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Where model families write the length of their context, in the order of trust.
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
# transformers writes 10**30 for "not known".
_NO_LENGTH = 1 << 31


class InvalidModelError(Exception):
    """A model directory that cannot be served. Names the file and the problem."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The parsed files of one directory. Files that are absent are empty here."""

    directory: Path
    tokenizer_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    config: Mapping[str, Any]
    jinja_files: Mapping[str, Path]

    def templates(self) -> dict[str, tuple[str, str]]:
        """Name → (source, file it is from). Raises InvalidModelError."""
        if self.jinja_files:
            return {name: (_read_text(path), str(path)) for name, path in self.jinja_files.items()}
        origin = str(self.directory / "tokenizer_config.json")
        return {name: (source, origin) for name, source in self._templates_in_config(origin)}

    def _templates_in_config(self, origin: str) -> Iterator[tuple[str, str]]:
        """`chat_template` is one string, or a list of `{"name": …, "template": …}`."""
        templates = self.tokenizer_config.get("chat_template") or []
        entries = [{"name": "default", "template": templates}] if isinstance(templates, str) else templates
        for entry in entries if isinstance(entries, list) else [entries]:
            match entry:
                case {"name": str(name), "template": str(source)}:
                    yield name, source
                case _:
                    raise InvalidModelError(
                        f"{origin}: chat_template is neither a string nor a list of named templates"
                    )

    def special_tokens(self) -> dict[str, str]:
        """The variables that templates see: `bos_token`, `eos_token`, … and a model's own (`image_token`)."""
        named = {key: _content(value) for key, value in self._special_settings().items() if key in _NAMED}
        own = {
            key: value for key, value in self.tokenizer_config.items() if key.endswith("_token") and key not in _NAMED
        }
        extra = self.tokenizer_config.get("extra_special_tokens")
        own |= extra if isinstance(extra, dict) else {}
        texts = named | {key: _content(value) for key, value in own.items()}
        return {key: text for key, text in texts.items() if text is not None}

    def extra_special_tokens(self) -> list[str]:
        """Special tokens without a name: those that only mark turns, say."""
        settings = self._special_settings()
        extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
        texts = [_content(token) for token in extra] if isinstance(extra, list) else []
        return [text for text in texts if text is not None]

    def added_tokens(self) -> list[tuple[int, AddedToken]]:
        """The tokens that tokenizer_config.json adds, in the order of their ids. Raises InvalidModelError."""
        entries = self.tokenizer_config.get("added_tokens_decoder") or {}
        try:
            return sorted(((int(id_), AddedToken(**token)) for id_, token in entries.items()), key=lambda pair: pair[0])
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidModelError(
                f"{self.directory / 'tokenizer_config.json'}: added_tokens_decoder: {error}"
            ) from error

    def context_tokens(self) -> int | None:
        """The longest prompt and answer that the model was made for, in tokens; None when no file says."""
        for source in (self.config, self.config.get("text_config") or {}):
            for key in _CONTEXT_KEYS:
                if (length := _length(source.get(key))) is not None:
                    return length
        return _length(self.tokenizer_config.get("model_max_length"))

    def _special_settings(self) -> dict[str, Any]:
        """special_tokens_map.json speaks only where tokenizer_config.json does not list its tokens."""
        if "added_tokens_decoder" in self.tokenizer_config:
            return dict(self.tokenizer_config)
        return {**self.tokenizer_config, **self.special_tokens_map}


def read_model_files(directory: Path) -> ModelFiles:
    """Raises InvalidModelError when the directory has no tokenizer.json, or a file in it is not what its name says."""
    if not directory.is_dir():
        raise InvalidModelError(f"{directory}: no such directory")
    if not (directory / "tokenizer.json").is_file():
        raise InvalidModelError(
            f"{directory / 'tokenizer.json'}: no such file; a tokenizer in the Hugging Face format is needed"
        )
    return ModelFiles(
        directory=directory,
        tokenizer_config=_read_object(directory / "tokenizer_config.json"),
        special_tokens_map=_read_object(directory / "special_tokens_map.json"),
        config=_read_object(directory / "config.json"),
        jinja_files=dict(_jinja_files(directory)),
    )


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """tokenizer.json, with the special tokens that tokenizer_config.json adds to it. Raises InvalidModelError."""
    path = files.directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    # The only class that the Rust side raises, for a missing file as for a wrong one.
    except Exception as error:
        raise InvalidModelError(f"{path}: {error}") from error
    # A file saved during training may cut or pad; a prompt must be neither.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add_special_tokens(tokenizer, files)
    return tokenizer


def _add_special_tokens(tokenizer: Tokenizer, files: ModelFiles) -> None:
    """As transformers does: by id those of `added_tokens_decoder`, then those that are only named."""
    present = tokenizer.get_added_tokens_decoder()
    missing = [token for id_, token in files.added_tokens() if id_ not in present]
    known = {token.content for token in [*present.values(), *missing]}
    for text in [*files.special_tokens().values(), *files.extra_special_tokens()]:
        if text not in known:
            known.add(text)
            missing.append(AddedToken(text, special=True))
    tokenizer.add_tokens(missing)


def _jinja_files(directory: Path) -> Iterator[tuple[str, Path]]:
    default = directory / "chat_template.jinja"
    if default.is_file():
        yield "default", default
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        yield path.stem, path


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidModelError(f"{path}: not a JSON object")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelError(f"{path}: {error}") from error


def _content(token: object) -> str | None:
    """A token is written as its text, or as an object that holds the text and how it is matched."""
    match token:
        case str(text) | {"content": str(text)}:
            return text
        case _:
            return None


def _length(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value < _NO_LENGTH else None
