"""Greedy tokens of the paged engine are those of `transformers`, however the step loop cuts and mixes them."""

from __future__ import annotations

import pytest

from contract.engine_contract import hashes, prompt, request
from unit.executor.oracle import RUNS, reference_greedy, run_paged
from weir_executor.request import GenerationRequest

_LENGTHS = (1, 5, 16, 33, 50, 90)
_MAX_TOKENS = 20
_ROOT = b"oracle"


def _requests() -> list[GenerationRequest]:
    return [request(key, prompt(length, start=key), _MAX_TOKENS) for key, length in enumerate(_LENGTHS)]


def _expected(family: str, requests: list[GenerationRequest]) -> dict[int, list[int]]:
    return {r.key: reference_greedy(family, list(r.token_ids), r.max_tokens) for r in requests}


@pytest.mark.parametrize(("family", "kernels"), RUNS)
def test_alone(family: str, kernels: str) -> None:
    for generation in _requests()[2:5]:
        tokens, _ = run_paged(family, [generation], kernels)
        assert tokens == _expected(family, [generation])


@pytest.mark.parametrize(("family", "kernels"), RUNS)
def test_in_mixed_batches_of_chunks_and_decodes(family: str, kernels: str) -> None:
    tokens, ends = run_paged(family, _requests(), kernels, max_batched_tokens=24, max_num_seqs=8)
    assert tokens == _expected(family, _requests())
    assert not any(end.preemptions for end in ends.values())


@pytest.mark.parametrize(("family", "kernels"), RUNS)
def test_under_forced_preemption(family: str, kernels: str) -> None:
    """Eight blocks for six sequences: they push one another out and come back."""
    tokens, ends = run_paged(family, _requests(), kernels, max_batched_tokens=32, max_num_seqs=8, num_blocks=8)
    assert tokens == _expected(family, _requests())
    assert sum(end.preemptions for end in ends.values()) > 0


@pytest.mark.parametrize(("family", "kernels"), RUNS)
def test_after_prefix_hits(family: str, kernels: str) -> None:
    """One long beginning, several ends: what the first computes the others find."""
    beginning = prompt(64, start=77)
    requests = []
    for key, more in enumerate(prompt(30, start=key) for key in range(4)):
        token_ids = beginning + more
        requests.append(request(key, token_ids, _MAX_TOKENS, block_hashes=hashes(token_ids, 16), cache_scope=_ROOT))
    tokens, ends = run_paged(family, requests, kernels, max_batched_tokens=40)
    assert tokens == _expected(family, requests)
    assert [ends[key].cached_prompt_tokens for key in range(4)] == [0, 64, 64, 64]


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("block_size", [1, 3, 16, 64])
def test_with_any_block_size(block_size: int, kernels: str) -> None:
    tokens, _ = run_paged(
        "llama3", _requests(), kernels, block_size=block_size, num_blocks=400, max_batched_tokens=24, max_num_seqs=8
    )
    assert tokens == _expected("llama3", _requests())


def test_outputs_of_one_request_share_its_prompt() -> None:
    generation = request(1, prompt(50), _MAX_TOKENS, n=4)
    tokens, ends = run_paged("qwen3", [generation])
    assert tokens == _expected("qwen3", [generation])
    assert ends[1].completion_tokens == 4 * _MAX_TOKENS


def test_decodes_of_very_different_lengths_are_padded_in_groups() -> None:
    """With blocks of one token, ninety beside one wastes more than a group may."""
    generations = [request(key, prompt(length, start=key), 12) for key, length in enumerate((1, 200, 3, 90, 91, 2))]
    tokens, _ = run_paged("llama3", generations, block_size=1, num_blocks=500)
    assert tokens == _expected("llama3", generations)


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_a_sequence_up_to_the_very_end_of_the_context(kernels: str) -> None:
    generation = request(1, prompt(500), 12)
    tokens, _ = run_paged("llama3", [generation], kernels, max_batched_tokens=100)
    assert tokens == _expected("llama3", [generation])
