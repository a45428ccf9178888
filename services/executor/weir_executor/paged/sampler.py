"""Logits → token ids, all rows at once. What a row draws depends on that row alone.

In this order, each only where asked for (1 to 6 are in `logits.py`):

    1. repetition penalty    over prompt and generated tokens: positive logits divided by it, negative ones multiplied
    2. presence, frequency   subtracted once per, and per occurrence of, a generated token
    3. logit bias            added
    4. watermark             its bias added to the logits of green tokens
    5. forbidden tokens      minus infinity (those that would end an output before `min_tokens`)
    6. guide                 minus infinity for every token that it does not allow here
    7. temperature           logits divided by it; 0 takes the highest logit (the lowest id among equals) and skips 8, 9
       ── log-probabilities are of this distribution (of temperature 1, where the temperature is 0) ──
    8. top-k, top-p, min-p   top-p is of the mass that top-k keeps; tokens as likely as the last one kept are kept too
    9. draw                  inverse CDF over the kept tokens in the order of their ids, by one uniform number per token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from weir_executor.paged.logits import SampleRow, process
from weir_executor.paged.philox import uniforms
from weir_executor.paged.worker import Draw
from weir_executor.request import Sampling
from weir_executor.step_output import TokenLogprobs

# Top-p nearly always ends within this many of the likeliest tokens; finding those is far cheaper than sorting them all.
_FEW = 256


def sample(logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[Draw]:
    """One token for each row of `logits`, [rows, vocabulary] in float32, which is changed in place."""
    process(logits, rows)
    token_ids = logits.argmax(dim=-1)
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    described = [index for index, row in enumerate(rows) if row.sampling.top_logprobs is not None]
    if drawn:
        _divide(logits, [row.sampling.temperature or 1.0 for row in rows])
        where = _indices(drawn, logits)
        token_ids[where] = _draw(logits[where], [rows[index] for index in drawn])
    logprobs = _logprobs(logits, token_ids, described, rows) if described else {}
    return [Draw(token_id, logprobs.get(index)) for index, token_id in enumerate(token_ids.tolist())]


def _divide(logits: torch.Tensor, temperatures: list[float]) -> None:
    if any(temperature != 1.0 for temperature in temperatures):
        # Below zero, the least temperature can only give minus infinity, never plus.
        logits -= logits.amax(dim=-1, keepdim=True)
        logits /= torch.tensor(temperatures, dtype=logits.dtype, device=logits.device).unsqueeze(1)


def _draw(logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
    probabilities = logits.softmax(dim=-1)
    kept = probabilities * (probabilities >= thresholds(probabilities, [row.sampling for row in rows]))
    cumulative = kept.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1]
    uniform = uniforms(
        [row.sampling.seed for row in rows],
        [row.output_index for row in rows],
        [len(row.token_ids) for row in rows],
    )
    # Rounding must not lift the point to the total: the first token beyond it is then always a kept one.
    point = torch.from_numpy(uniform).to(logits.device) * total
    point = torch.minimum(point, total.nextafter(torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, point.unsqueeze(1), right=True).squeeze(1)
    # Only a row that forbids every token gets here beyond the end; it must not take its neighbours with it.
    return drawn.clamp_(max=logits.shape[1] - 1)


def thresholds(probabilities: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """The least probability that each row keeps, [rows, 1]."""
    least = torch.zeros_like(probabilities[:, :1])
    _raise(least, probabilities, samplings, lambda s: s.top_k > 0, _top_k)
    _raise(least, probabilities, samplings, lambda s: s.top_p < 1.0, _top_p)
    _raise(least, probabilities, samplings, lambda s: s.min_p > 0, _min_p)
    return least


_Rule = Callable[[torch.Tensor, Sequence[Sampling], torch.Tensor], torch.Tensor]


def _raise(
    least: torch.Tensor,
    probabilities: torch.Tensor,
    samplings: Sequence[Sampling],
    asks: Callable[[Sampling], bool],
    rule: _Rule,
) -> None:
    """Raise the thresholds of those rows that ask for a rule, in place."""
    chosen = [index for index, sampling in enumerate(samplings) if asks(sampling)]
    if chosen:
        where = _indices(chosen, probabilities)
        so_far = least[where]
        least[where] = torch.maximum(so_far, rule(probabilities[where], [samplings[i] for i in chosen], so_far))


def _top_k(probabilities: torch.Tensor, samplings: Sequence[Sampling], _: torch.Tensor) -> torch.Tensor:
    counts = [min(sampling.top_k, probabilities.shape[1]) for sampling in samplings]
    best = probabilities.topk(max(counts), dim=-1).values
    return best.gather(1, _indices(counts, probabilities).unsqueeze(1) - 1)


def _min_p(probabilities: torch.Tensor, samplings: Sequence[Sampling], _: torch.Tensor) -> torch.Tensor:
    return probabilities.amax(dim=-1, keepdim=True) * _column([s.min_p for s in samplings], probabilities)


def _top_p(probabilities: torch.Tensor, samplings: Sequence[Sampling], kept_by_k: torch.Tensor) -> torch.Tensor:
    """The probability of the last token needed to reach `top_p` of the mass that top-k keeps."""
    kept = probabilities * (probabilities >= kept_by_k)
    wanted = kept.sum(dim=-1, keepdim=True, dtype=torch.float64) * _column([s.top_p for s in samplings], probabilities)
    threshold, reached = _where_reached(probabilities.topk(min(_FEW, probabilities.shape[1]), dim=-1).values, wanted)
    if not bool(reached.all()):
        rest = ~reached.squeeze(1)
        threshold[rest] = _where_reached(probabilities[rest].sort(dim=-1, descending=True).values, wanted[rest])[0]
    return threshold


def _where_reached(descending: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first value with which a row's sum reaches what is wanted, and whether any does."""
    reaching = descending.cumsum(dim=-1, dtype=torch.float64) >= wanted
    reached = reaching.any(dim=-1, keepdim=True)
    first = torch.where(reached, reaching.int().argmax(dim=-1, keepdim=True), descending.shape[1] - 1)
    return descending.gather(1, first), reached


def _logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, described: list[int], rows: Sequence[SampleRow]
) -> dict[int, TokenLogprobs]:
    where = _indices(described, logits)
    logprobs = logits[where].log_softmax(dim=-1)
    drawn = logprobs.gather(1, token_ids[where].unsqueeze(1)).squeeze(1).tolist()
    counts = [rows[index].sampling.top_logprobs or 0 for index in described]
    best = logprobs.topk(max(counts), dim=-1)
    return {
        index: TokenLogprobs(logprob, tuple(ids[:count]), tuple(values[:count]))
        for index, logprob, ids, values, count in zip(
            described, drawn, best.indices.tolist(), best.values.tolist(), counts, strict=True
        )
    }


def _indices(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=like.device)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
