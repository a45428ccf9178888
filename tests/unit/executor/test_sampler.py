"""The sampler against `transformers`' processors, against probability itself, and against its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.generation import logits_process as oracle

from weir_executor.paged.logits import SampleRow, process
from weir_executor.paged.sampler import sample, thresholds
from weir_executor.request import Sampling

_VOCAB = 500
_PROMPT = [3, 7, 7, 11, 499, 42]
_GENERATED = [5, 7, 5, 5, 100]
_GREEDY = Sampling(temperature=0.0)


def _logits(rows: int = 4, vocab: int = _VOCAB, *, seed: int = 1, scale: float = 3.0) -> torch.Tensor:
    return torch.randn((rows, vocab), generator=torch.Generator().manual_seed(seed)) * scale


def _row(sampling: Sampling, **fields: Any) -> SampleRow:
    defaults: dict[str, Any] = {"output_index": 0, "token_ids": _PROMPT + _GENERATED, "num_prompt": len(_PROMPT)}
    return SampleRow(sampling, **{**defaults, **fields})


def _input_ids(rows: int = 4) -> torch.Tensor:
    return torch.tensor([_PROMPT + _GENERATED] * rows)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    "filters", [{"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.6, "min_p": 0.02}]
)
def test_filters_keep_what_those_of_transformers_keep(temperature: float, filters: dict[str, Any]) -> None:
    warped = oracle.TemperatureLogitsWarper(temperature)(_input_ids(), _logits(40))
    for name, warper in (
        ("top_k", oracle.TopKLogitsWarper),
        ("top_p", oracle.TopPLogitsWarper),
        ("min_p", oracle.MinPLogitsWarper),
    ):
        warped = warper(filters[name])(_input_ids(), warped) if name in filters else warped
    probabilities = (_logits(40) / temperature).softmax(dim=-1)
    kept = probabilities >= thresholds(probabilities, [Sampling(temperature, **filters)] * 40)
    assert torch.equal(kept, warped.isfinite())


def test_top_p_of_a_flat_distribution_needs_more_than_a_few_tokens() -> None:
    """The shortcut over the likeliest tokens does not reach, and all are sorted: same answer as for its neighbour."""
    logits = _logits(2, 5000, scale=0.01)
    logits[1] *= 1000
    probabilities = logits.softmax(dim=-1)
    least = thresholds(probabilities, [Sampling(top_p=0.9)] * 2)
    for row in range(2):
        descending = probabilities[row].sort(descending=True).values
        count = int((descending.cumsum(0, dtype=torch.float64) < 0.9).sum()) + 1
        assert int((probabilities[row] >= least[row]).sum()) == count
    assert int((probabilities[0] >= least[0]).sum()) > 4000


def test_equal_tokens_at_the_edge_are_kept_together() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    probabilities = logits.softmax(dim=-1)
    assert (probabilities >= thresholds(probabilities, [Sampling(top_k=2)])).tolist() == [[True] * 4 + [False]]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros((1, 10))
    logits[0, [4, 7]] = 1.0
    assert sample(logits, [_row(_GREEDY)])[0].token_id == 4


def test_draws_follow_the_distribution() -> None:
    count, logits = 20_000, _logits(1, 12, scale=1.0)
    rows = [_row(Sampling(seed=3), token_ids=range(place), num_prompt=0) for place in range(count)]
    draws = sample(logits.expand(count, -1).clone(), rows)
    frequencies = torch.bincount(torch.tensor([draw.token_id for draw in draws]), minlength=12) / count
    expected = logits[0].softmax(dim=-1)
    # Four standard deviations of a binomial share.
    assert bool(((frequencies - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt()).all())


def test_filtered_tokens_are_never_drawn() -> None:
    rows = [_row(Sampling(top_k=5, seed=seed)) for seed in range(500)]
    logits = _logits(1).expand(500, -1).clone()
    best = set(_logits(1)[0].topk(5).indices.tolist())
    assert {draw.token_id for draw in sample(logits, rows)} == best


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    samplings = [
        _GREEDY,
        Sampling(0.7, seed=1),
        Sampling(1.0, top_p=0.9, seed=2, top_logprobs=3),
        Sampling(1.3, top_k=20, seed=3),
        Sampling(1.0, min_p=0.05, seed=4, repetition_penalty=1.2),
        Sampling(0.9, top_k=300, top_p=0.99, seed=5, top_logprobs=0),
    ]
    rows = [_row(sampling, output_index=index) for index, sampling in enumerate(samplings)]
    together = sample(_logits(6), rows)
    for index, row in enumerate(rows):
        assert sample(_logits(6)[index : index + 1], [row]) == [together[index]]
    reversed_order = sample(_logits(6).flip(0).contiguous(), rows[::-1])
    assert reversed_order == together[::-1]


def test_logprobs_are_of_the_distribution_before_the_filters() -> None:
    sampling = Sampling(0.5, top_k=3, repetition_penalty=1.4, logit_bias={8: 1.0}, seed=9, top_logprobs=4)
    (draw,) = sample(_logits(1), [_row(sampling)])
    logits = _logits(1)
    process(logits, [_row(sampling)])
    wanted = (logits[0] / 0.5).log_softmax(dim=-1)
    assert draw.logprobs is not None
    assert draw.logprobs.logprob == pytest.approx(wanted[draw.token_id].item(), abs=1e-5)
    best = wanted.topk(4)
    assert list(draw.logprobs.top_token_ids) == best.indices.tolist()
    assert list(draw.logprobs.top_logprobs) == pytest.approx(best.values.tolist(), abs=1e-5)


def test_greedy_logprobs_are_of_temperature_one() -> None:
    rows = [_row(replace(_GREEDY, top_logprobs=1)), _row(Sampling(0.5, seed=1))]
    draw = sample(_logits(2), rows)[0]
    assert draw.logprobs is not None
    assert draw.logprobs.logprob == pytest.approx(_logits(2)[0].log_softmax(dim=-1).max().item(), abs=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_kept_tokens(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from weir_executor.paged import sampler

    monkeypatch.setattr(sampler, "uniforms", lambda seeds, *_: np.full(len(seeds), uniform))
    logits = torch.full((1, 10), -torch.inf)
    logits[0, [3, 6]] = torch.tensor([0.1, 0.2])
    assert sample(logits, [_row(Sampling())])[0].token_id == (3 if uniform == 0.0 else 6)


@pytest.mark.parametrize("temperature", [1e-6, 1e-10, 1e-44])
def test_the_least_temperatures_are_greedy_and_not_nan(temperature: float) -> None:
    rows = [_row(Sampling(temperature, seed=seed, top_logprobs=0)) for seed in range(4)]
    draws = sample(_logits(), rows)
    assert [draw.token_id for draw in draws] == _logits().argmax(dim=-1).tolist()
    assert all(draw.logprobs is not None and draw.logprobs.logprob > -1e-3 for draw in draws)


def test_a_row_that_forbids_every_token_harms_no_neighbour() -> None:
    rows = [_row(Sampling(seed=1), forbidden=frozenset(range(_VOCAB))), _row(Sampling(seed=1))]
    first, second = sample(_logits(2), rows)
    assert 0 <= first.token_id < _VOCAB
    assert [second] == sample(_logits(2)[1:], rows[1:])
