"""The revision of a model directory, executable: what `ModelVersion.revision` in model.proto promises.

Two services serve the same model only when model, revision and tokenizer hash agree. Reading 16 GB of weights at every
start would be slow, so the fingerprint takes the whole of every small file that changes an answer (by name, then the
further chat templates, then the indexes that say which weight file holds what), and of each weight file its name, its
size, its header (names, dtypes and shapes of the tensors) and 64 evenly spread samples of 4 KiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

_WHOLE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
_WHOLE_TOO = ("additional_chat_templates/*.jinja", "*.safetensors.index.json")
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def model_revision(directory: Path) -> str:
    """24 hex characters naming the contents of a Hugging Face model directory. Raises OSError for an unreadable one."""
    digest = blake2b(digest_size=12, person=b"weir.model.v1")
    for path in _whole_files(directory):
        _frame(digest, path.relative_to(directory).as_posix().encode(), path.read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        _frame(digest, path.name.encode(), str(path.stat().st_size).encode())
        _sample(digest, path)
    return digest.hexdigest()


def tokenizer_hash(directory: Path) -> str:
    """32 hex characters naming the tokenizer: BLAKE2b-128 of `tokenizer.json`. Raises OSError where there is none."""
    return blake2b((directory / "tokenizer.json").read_bytes(), digest_size=16, person=b"weir.tok.v1").hexdigest()


def _whole_files(directory: Path) -> Iterator[Path]:
    yield from (path for name in _WHOLE if (path := directory / name).is_file())
    for pattern in _WHOLE_TOO:
        yield from sorted(directory.glob(pattern))


def _sample(digest: _Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = min(int.from_bytes(file.read(8), "little"), size)
        _frame(digest, b"header", file.read(header_bytes))
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))


def _frame(digest: _Hash, *fields: bytes) -> None:
    for field in fields:
        digest.update(len(field).to_bytes(8, "little") + field)
