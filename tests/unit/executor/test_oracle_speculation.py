"""Tokens with speculation are those without, greedy and sampled, however the step loop cuts and mixes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from contract.engine_contract import hashes, prompt, request
from unit.executor.oracle import reference_logits, run_paged
from weir_executor.engine import GenerationRequest, Sampling, SpeculationMode
from weir_executor.paged.speculation.drafter import SpeculationOptions

_NGRAM = SpeculationMode.NGRAM
_FAMILIES = ("llama2", "mistral", "qwen3")
_MAX_TOKENS = 24
_TEMPERATURE = 12.0
# A bias towards a few tokens makes even random weights repeat themselves.
_REPETITIVE = Sampling(0.6, logit_bias=dict.fromkeys(range(40, 44), 14.0), seed=21)


def _always(mode: SpeculationMode = _NGRAM) -> dict[str, Any]:
    return {"speculation": SpeculationOptions(mode=mode, max_draft_tokens=5, adaptive=False)}


def _prompt(key: int) -> list[int]:
    """Of repeated pieces, so that there is something to look up."""
    piece = prompt(7 + key, start=key)
    return piece * 3 + piece[:2]


def _requests(**fields: Any) -> list[GenerationRequest]:
    return [
        request(
            key,
            _prompt(key),
            _MAX_TOKENS,
            sampling=replace(_REPETITIVE, temperature=0.0) if key == 5 else _REPETITIVE,
            block_hashes=hashes(_prompt(key), 16),
            cache_scope=b"speculation",
            **fields,
        )
        for key in range(6)
    ]


@pytest.mark.parametrize("family", _FAMILIES)
def test_drafts_that_stand_change_no_token(family: str) -> None:
    plain, plain_ends = run_paged(family, _requests())
    tokens, ends = run_paged(family, _requests(), **_always())
    assert tokens == plain
    assert sum(end.accepted_draft_tokens for end in ends.values()) > 20
    assert not any(end.draft_tokens for end in plain_ends.values())


def test_beside_neighbours_that_do_without() -> None:
    plain, _ = run_paged("qwen3", _requests())
    mixed = [replace(g, speculation=None if g.key % 2 else _NGRAM) for g in _requests()]
    off = SpeculationOptions(max_draft_tokens=5, adaptive=False)
    tokens, ends = run_paged("qwen3", mixed, speculation=off, max_batched_tokens=40, max_num_seqs=6)
    assert tokens == plain
    assert [end.draft_tokens > 0 for _, end in sorted(ends.items())] == [True, False] * 3


def test_preempted() -> None:
    plain, _ = run_paged("qwen3", _requests())
    tokens, ends = run_paged("qwen3", _requests(), **_always(), num_blocks=12, max_num_seqs=6)
    assert tokens == plain
    assert sum(end.preemptions for end in ends.values()) > 0
    assert sum(end.accepted_draft_tokens for end in ends.values()) > 0


@pytest.mark.parametrize("cut", [1, 11, 23])
def test_resumed(cut: int) -> None:
    plain, _ = run_paged("qwen3", _requests())
    resumed = [
        request(g.key, g.token_ids, _MAX_TOKENS, sampling=g.sampling, resumed={0: plain[g.key][:cut]})
        for g in _requests()
    ]
    tokens, _ = run_paged("qwen3", resumed, **_always())
    assert tokens == {key: whole[cut:] for key, whole in plain.items()}


def test_outputs_of_one_prompt_and_blocks_of_one_token() -> None:
    generation = request(1, _prompt(3), _MAX_TOKENS, n=3, sampling=_REPETITIVE)
    plain, _ = run_paged("llama2", [generation])
    tokens, ends = run_paged("llama2", [generation], **_always(), block_size=1, num_blocks=300)
    assert tokens == plain
    assert ends[1].completion_tokens == 3 * _MAX_TOKENS
    assert ends[1].accepted_draft_tokens > 0


def test_the_distribution_is_the_models_own() -> None:
    """Pairs of tokens of many seeds, drafted at every turn, against the probabilities that transformers gives (χ²)."""
    letters = range(40, 46)
    # Every pair of letters stands in the prompt, so that each step after the first has a draft.
    token_ids = [letter for first in letters for second in letters for letter in (first, second)]
    sampling = Sampling(_TEMPERATURE, top_k=6, logit_bias=dict.fromkeys(letters, 100.0))
    generations = [request(seed, token_ids, 3, sampling=replace(sampling, seed=seed)) for seed in range(3000)]
    roomy: dict[str, Any] = {"num_blocks": 4000, "max_waiting": 4000, "max_batched_tokens": 8192}
    tokens, ends = run_paged("llama2", generations, **_always(), **roomy)
    accepted, drafted = (
        sum(getattr(end, name) for end in ends.values()) for name in ("accepted_draft_tokens", "draft_tokens")
    )
    assert drafted == 3000
    assert 0.05 < accepted / drafted < 0.6
    first = _probabilities(token_ids, letters)
    pairs = {
        (one, two): first[one] * second
        for one in letters
        for two, second in _probabilities([*token_ids, one], letters).items()
    }
    _assert_drawn_from(Counter((drawn[0], drawn[1]) for drawn in tokens.values()), pairs)


def _probabilities(token_ids: list[int], letters: range) -> dict[int, float]:
    """Of the next token; the bias leaves nothing to others."""
    scores = reference_logits("llama2", token_ids)[-1][list(letters)] / _TEMPERATURE
    return dict(zip(letters, scores.softmax(dim=-1).tolist(), strict=True))


def _assert_drawn_from(counts: Counter[tuple[int, int]], probabilities: dict[tuple[int, int], float]) -> None:
    """Pearson's χ² over all cells expected at least five times; one true sample in a thousand fails."""
    total = counts.total()
    cells = [(counts[pair], p * total) for pair, p in probabilities.items() if p * total >= 5]
    assert len(cells) >= 20
    assert sum(seen for seen, _ in cells) >= 0.98 * total
    statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty's approximation of the quantile.
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3, (statistic, freedom)
