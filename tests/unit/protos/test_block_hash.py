"""Golden vectors: whoever writes block hashes in another language tests against these."""

from __future__ import annotations

import struct
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.kvstore.v1.block_hash import (
    HashScope,
    block_hash,
    block_hashes,
    iterate_block_hashes,
    join_hashes,
    namespace_fingerprint,
    scope_root,
    split_hashes,
)

SCOPES = {
    "plain": HashScope("weir-tiny", "rev-1", "0123456789abcdef0123456789abcdef"),
    "all": HashScope("größe/模型", "main", "ff" * 16, adapter="lora-a", tenant_salt="tenant-7"),
    "empty": HashScope("", "", ""),
}
TOKENS = [0, 1, 255, 256, 65_535, 65_536, 2**32 - 1, 7, 8]

# Frozen: a change here is a change of every address in every store.
ROOTS = {
    "plain": "1c27d5b1b8408a2c809f516c74e37285",
    "all": "fa8a69bced68cca35ee27615862735fa",
    "empty": "534c6ff86485f0fe352d38952d71a7d0",
}
HASHES = {
    ("plain", 1): [
        "89c99c673f7a70c27c1f32f0fbd63b41",
        "65862f9dbc85d87d74b7d03126c6b8de",
        "87362c824666f0d65e9d0a2b423d759f",
        "00be2055ee8abd2af61d7717705c4076",
        "3dc3015a09db02682e78d688e9144808",
        "21c4ec91eb80399b7cc69538b4e4732f",
        "1d95e50c6f6221f092ca4d5b15e503d8",
        "4a4f9f96256b8471403c2c69249dca93",
        "3c68313456fcd59a24580745f9941d96",
    ],
    ("plain", 4): [
        "2840f2ef7c0d83ce6f7230214bd745dc",
        "3790c418ff447c7ca4dea3ce7c508bb6",
    ],
    ("all", 4): [
        "a02e64043961858ea73d8c69984e466f",
        "00c13b3b568657ba24b1b5b4ac523b28",
    ],
    ("empty", 9): [
        "1f964d93ff028305f3ec91c65697cb16",
    ],
}
NAMESPACE = "3fe058de753cb2eccec974faf7481271"
OTHER_SHARD = "b0bee8d8639dcff6fa1bd31c6dadc1d0"


def frame(text: str) -> bytes:
    return struct.pack("<I", len(text.encode("utf-8"))) + text.encode("utf-8")


def step(data: bytes, person: str) -> bytes:
    return blake2b(data, digest_size=16, person=person.encode().ljust(16, b"\0")).digest()


def root_by_steps(scope: HashScope) -> bytes:
    fields = [scope.model, scope.revision, scope.tokenizer_hash, scope.adapter, scope.tenant_salt]
    return step(b"".join(frame(field) for field in fields), "weir.scope.v1")


def hashes_by_steps(scope: HashScope, token_ids: list[int], block_size: int) -> list[bytes]:
    parent, hashes = root_by_steps(scope), []
    for start in range(0, len(token_ids) // block_size * block_size, block_size):
        block = token_ids[start : start + block_size]
        parent = step(parent + struct.pack(f"<{block_size}I", *block), "weir.block.v1")
        hashes.append(parent)
    return hashes


@pytest.mark.parametrize("name", SCOPES)
def test_roots(name: str) -> None:
    assert scope_root(SCOPES[name]) == root_by_steps(SCOPES[name])
    assert scope_root(SCOPES[name]).hex() == ROOTS[name]


@pytest.mark.parametrize(("name", "block_size"), HASHES)
def test_hashes(name: str, block_size: int) -> None:
    hashes = block_hashes(scope_root(SCOPES[name]), TOKENS, block_size)
    assert hashes == hashes_by_steps(SCOPES[name], TOKENS, block_size)
    assert [address.hex() for address in hashes] == HASHES[name, block_size]


def test_namespaces() -> None:
    root = scope_root(SCOPES["plain"])
    found = namespace_fingerprint(root, kv_dtype="bfloat16", kv_layout="paged.v1", block_size=16)
    fields = b"".join(frame(field) for field in ("bfloat16", "paged.v1", "16", ""))
    assert found == step(root + fields, "weir.kvspace.v1")
    assert found.hex() == NAMESPACE
    shard = namespace_fingerprint(root, kv_dtype="bfloat16", kv_layout="paged.v1", block_size=16, shard="1/2")
    assert shard.hex() == OTHER_SHARD


tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(tokens, st.integers(1, 9))
def test_any_tokens(token_ids: list[int], block_size: int) -> None:
    scope = SCOPES["all"]
    hashes = block_hashes(scope_root(scope), token_ids, block_size)
    assert hashes == hashes_by_steps(scope, token_ids, block_size)
    assert hashes == list(iterate_block_hashes(scope_root(scope), token_ids, block_size))
    assert len(hashes) == len(token_ids) // block_size
    assert split_hashes(join_hashes(hashes)) == hashes


@given(tokens, tokens, st.integers(1, 5))
def test_a_common_prefix_has_common_hashes(left: list[int], right: list[int], block_size: int) -> None:
    root = scope_root(SCOPES["plain"])
    a, b = block_hashes(root, left, block_size), block_hashes(root, right, block_size)
    for i, (one, other) in enumerate(zip(a, b, strict=False)):
        assert (one == other) == (left[: (i + 1) * block_size] == right[: (i + 1) * block_size])


def test_one_block_is_a_step_of_the_chain() -> None:
    root = scope_root(SCOPES["plain"])
    first, second = block_hashes(root, TOKENS[:8], 4)
    assert first == block_hash(root, TOKENS[:4])
    assert second == block_hash(first, TOKENS[4:8])


def test_no_field_runs_into_the_next() -> None:
    scopes = [
        HashScope("ab", "c", "t"),
        HashScope("a", "bc", "t"),
        HashScope("ab", "", "ct"),
        HashScope("ab", "c", "t", "x"),
        HashScope("ab", "c", "t", "", "x"),
    ]
    assert len({scope_root(scope) for scope in scopes}) == len(scopes)


def test_two_block_sizes_never_share_an_address() -> None:
    root = scope_root(SCOPES["plain"])
    found = [block_hashes(root, [1] * 64, size) for size in (1, 2, 4, 8)]
    assert len({address for hashes in found for address in hashes}) == sum(map(len, found))


@pytest.mark.parametrize("wrong", [-1, 2**32])
def test_an_id_outside_uint32_is_refused(wrong: int) -> None:
    with pytest.raises(OverflowError):
        block_hash(bytes(16), [wrong])


@pytest.mark.parametrize("length", [1, 15, 17, 33])
def test_packed_hashes_of_a_wrong_length_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="no whole number of 16-byte hashes"):
        split_hashes(bytes(length))


def test_nothing_has_no_hashes() -> None:
    root = scope_root(SCOPES["plain"])
    assert block_hashes(root, [], 4) == block_hashes(root, [1, 2, 3], 4) == split_hashes(b"") == []
