"""A seeded draw is the same alone, among others, after preemption and when resumed; every option takes part."""

from __future__ import annotations

import pytest

from contract.engine_contract import hashes, prompt, request
from unit.executor.oracle import run_paged
from weir_executor.request import GenerationRequest, Sampling

_MAX_TOKENS = 24
_SAMPLINGS = [
    Sampling(0.8, seed=11),
    Sampling(1.0, top_p=0.9, seed=12),
    Sampling(1.2, top_k=30, min_p=0.01, seed=13),
    Sampling(1.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, seed=14),
    Sampling(0.9, logit_bias={5: 3.0, 9: -3.0}, top_logprobs=3, seed=15),
    Sampling(0.0, repetition_penalty=1.2),
]


def _requests() -> list[GenerationRequest]:
    return [
        request(
            key,
            prompt(11 + 7 * key, start=key),
            _MAX_TOKENS,
            sampling=sampling,
            block_hashes=hashes(prompt(11 + 7 * key, start=key), 16),
            cache_scope=b"sampled",
        )
        for key, sampling in enumerate(_SAMPLINGS)
    ]


@pytest.fixture(scope="module")
def alone() -> dict[int, list[int]]:
    return {generation.key: run_paged("qwen3", [generation])[0][generation.key] for generation in _requests()}


def test_among_others_in_chunks(alone: dict[int, list[int]]) -> None:
    assert run_paged("qwen3", _requests(), max_batched_tokens=20, max_num_seqs=6)[0] == alone


def test_in_another_order(alone: dict[int, list[int]]) -> None:
    assert run_paged("qwen3", _requests()[::-1])[0] == alone


def test_preempted(alone: dict[int, list[int]]) -> None:
    tokens, ends = run_paged("qwen3", _requests(), num_blocks=8, max_num_seqs=6)
    assert tokens == alone
    assert sum(end.preemptions for end in ends.values()) > 0


@pytest.mark.parametrize("cut", [1, 12, 23])
def test_resumed(alone: dict[int, list[int]], cut: int) -> None:
    resumed = [
        request(g.key, g.token_ids, _MAX_TOKENS, sampling=g.sampling, resumed={0: alone[g.key][:cut]})
        for g in _requests()
    ]
    tokens, _ = run_paged("qwen3", resumed)
    assert tokens == {key: whole[cut:] for key, whole in alone.items()}


def test_a_draw_knows_its_seed() -> None:
    outputs = [
        run_paged("qwen3", [request(1, prompt(9), 8, sampling=Sampling(seed=seed))])[0][1] for seed in (1, 2, 2**63)
    ]
    assert len({tuple(tokens) for tokens in outputs}) == 3
