from __future__ import annotations

import json
import struct
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from shutil import copytree

import pytest

from weir.inference.v1.model_revision import model_revision, tokenizer_hash

FILES = {
    "config.json": b'{"hidden_size": 4}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b'{"eos_token": "x"}',
    "chat_template.jinja": b"{{ messages }}",
    "special_tokens_map.json": b"{}",
    "additional_chat_templates/rag.jinja": b"{{ documents }}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "model.safetensors.index.json": b'{"weight_map": {}}',
}
# Frozen: a change here makes every running service refuse every other one.
REVISION = "102ece7137e8ab8b5099fa22"
REVISION_OF_THE_USUAL_FILES = "1b5305359bf03389a2bdca05"
TOKENIZER_HASH = "3cfde8d6540f0cc668fd0dc3a80d6bf4"


def safetensors(size: int, dtype: str = "F32") -> bytes:
    header = json.dumps({"w": {"dtype": dtype, "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(i * 31 % 251 for i in range(size))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(safetensors(20_000))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(safetensors(100))
    return tmp_path


def by_steps(directory: Path) -> str:
    """The fingerprint as its description says it, written a second time."""
    data = b""

    def frame(*fields: bytes) -> bytes:
        return b"".join(struct.pack("<Q", len(field)) + field for field in fields)

    for name in FILES:
        data += frame(name.encode(), (directory / name).read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        content = path.read_bytes()
        data += frame(path.name.encode(), str(len(content)).encode())
        header_length = struct.unpack("<Q", content[:8])[0]
        data += frame(b"header", content[8 : 8 + header_length])
        last = max(0, len(content) - 4096)
        data += b"".join(content[last * i // 63 : last * i // 63 + 4096] for i in range(64))
    return blake2b(data, digest_size=12, person=b"weir.model.v1").hexdigest()


def test_golden(model: Path) -> None:
    assert model_revision(model) == by_steps(model) == REVISION
    assert tokenizer_hash(model) == TOKENIZER_HASH
    assert tokenizer_hash(model) == blake2b(FILES["tokenizer.json"], digest_size=16, person=b"weir.tok.v1").hexdigest()


def test_a_directory_without_the_rarer_files_keeps_its_revision(model: Path) -> None:
    for name in list(FILES)[-3:]:
        (model / name).unlink()
    (model / "additional_chat_templates/notes.txt").write_text("no template")
    assert model_revision(model) == REVISION_OF_THE_USUAL_FILES


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


def flip(name: str, offset: int) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[offset] ^= 1
        (directory / name).write_bytes(content)

    return change


WEIGHTS = "model-00001-of-00002.safetensors"
CHANGES: dict[str, Callable[[Path], object]] = {
    **{f"{name} differs": overwrite(name, b"other") for name in FILES},
    **{f"{name} is gone": remove(name) for name in FILES},
    "weights have another type": overwrite(WEIGHTS, safetensors(20_000, "F16")),
    "weights are longer": overwrite(WEIGHTS, safetensors(20_001)),
    "the last weight differs": flip(WEIGHTS, -1),
    "the first weight differs": flip(WEIGHTS, 200),
    "a further template has another name": lambda directory: (directory / "additional_chat_templates/rag.jinja").rename(
        directory / "additional_chat_templates/x.jinja"
    ),
    "a shard is gone": remove(WEIGHTS),
    "a shard has another name": lambda directory: (directory / WEIGHTS).rename(directory / "x.safetensors"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_an_answer_changes_the_revision(model: Path, change: str) -> None:
    before = model_revision(model)
    CHANGES[change](model)
    assert model_revision(model) != before


def test_moving_text_between_files_changes_the_revision(model: Path) -> None:
    before = model_revision(model)
    (model / "tokenizer.json").write_bytes(FILES["tokenizer.json"] + b"x")
    (model / "tokenizer_config.json").write_bytes(FILES["tokenizer_config.json"][:-1])
    assert model_revision(model) != before


def test_where_it_lies_and_what_else_lies_there_does_not_matter(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = model_revision(model)
    (model / "README.md").write_text("hello")
    (model / "pytorch_model.bin").write_bytes(b"x")
    assert model_revision(model) == before
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    copytree(model, copy)
    assert model_revision(copy) == before


def test_a_header_longer_than_its_file_is_read_to_the_end(model: Path) -> None:
    (model / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"cut")
    assert len(model_revision(model)) == 24


def test_only_the_tokenizer_decides_the_tokenizer_hash(model: Path) -> None:
    before = tokenizer_hash(model)
    (model / "config.json").write_bytes(b"other")
    assert tokenizer_hash(model) == before
    (model / "tokenizer.json").write_bytes(b"other")
    assert tokenizer_hash(model) != before


def test_no_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tokenizer\.json"):
        tokenizer_hash(tmp_path)
