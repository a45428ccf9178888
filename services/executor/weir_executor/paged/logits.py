"""What is done to logits before a token is drawn: steps 1 to 6 of `sampler.py`, one processor for each.

A processor changes the rows that ask for it, in place, and no other; those that nobody asks for cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch

from weir_executor.guided.bitmask import is_absent
from weir_executor.request import Sampling
from weir_executor.watermark.green import place_words, threshold, token_words


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What the sampler must know of the place that a token is drawn for."""

    sampling: Sampling
    output_index: int
    token_ids: Sequence[int]  # all before the place, drafts included
    num_prompt: int
    forbidden: frozenset[int] = frozenset()
    allowed: Any = None  # by its guide: a set of `guided/bitmask.py`; None: every token


# Of [rows, vocabulary] in float32, and the rows.
Processor = Callable[[torch.Tensor, Sequence[SampleRow]], None]


def process(logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    for processor in _PROCESSORS:
        processor(logits, rows)


def penalise_repetition(logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    chosen = [(index, row.token_ids) for index, row in enumerate(rows) if row.sampling.repetition_penalty != 1.0]
    if not chosen:
        return
    places: torch.Tensor = torch.unique(_places(logits, chosen))
    penalty = _per_place(logits, places, [row.sampling.repetition_penalty for row in rows])
    found = logits.view(-1)[places]
    logits.view(-1)[places] = torch.where(found > 0, found / penalty, found * penalty)


def penalise_occurrence(logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    chosen = [
        (index, row.token_ids[row.num_prompt :])
        for index, row in enumerate(rows)
        if row.sampling.presence_penalty or row.sampling.frequency_penalty
    ]
    if not chosen:
        return
    places, counts = torch.unique(_places(logits, chosen), return_counts=True)
    presence = _per_place(logits, places, [row.sampling.presence_penalty for row in rows])
    frequency = _per_place(logits, places, [row.sampling.frequency_penalty for row in rows])
    logits.view(-1)[places] -= presence + frequency * counts


def add_bias(logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    biased = [(index, row.sampling.logit_bias) for index, row in enumerate(rows) if row.sampling.logit_bias]
    if biased:
        values = list(chain.from_iterable(bias.values() for _, bias in biased))
        biases = torch.tensor(values, dtype=logits.dtype, device=logits.device)
        logits.view(-1).index_add_(0, _places(logits, biased), biases)


def mark(logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    """Make green tokens likelier; which they are, `watermark/green.py` says."""
    chosen = [
        (index, row.token_ids[-1], row.sampling.watermark)
        for index, row in enumerate(rows)
        if row.sampling.watermark is not None
    ]
    if not chosen:
        return
    masks, factors = place_words([w.key for _, _, w in chosen], [previous for _, previous, _ in chosen])
    limits = np.array([threshold(w.green_fraction) for _, _, w in chosen], dtype=np.int32)
    mask, factor, limit = (torch.from_numpy(words).to(logits.device).unsqueeze(1) for words in (masks, factors, limits))
    biases = torch.tensor([w.bias for _, _, w in chosen], dtype=logits.dtype, device=logits.device)
    green = (_token_words(logits.shape[1], logits.device) ^ mask).mul_(factor) < limit
    where = torch.tensor([index for index, _, _ in chosen], dtype=torch.int64, device=logits.device)
    logits[where] += green * biases.unsqueeze(1)


@lru_cache(maxsize=4)  # one vocabulary on one device, and those of tests
def _token_words(vocab_size: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(token_words(vocab_size)).to(device)


def forbid(logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    forbidden = [(index, row.forbidden) for index, row in enumerate(rows) if row.forbidden]
    if forbidden:
        logits.view(-1).index_fill_(0, _places(logits, forbidden), -torch.inf)


def follow_guides(logits: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    guided = [index for index, row in enumerate(rows) if row.allowed is not None]
    if guided:
        absent = torch.from_numpy(is_absent([rows[index].allowed for index in guided], logits.shape[1]))
        where = torch.tensor(guided, dtype=torch.int64, device=logits.device)
        logits[where] = logits[where].masked_fill_(absent.to(logits.device), -torch.inf)


_PROCESSORS: tuple[Processor, ...] = (penalise_repetition, penalise_occurrence, add_bias, mark, forbid, follow_guides)


def _places(logits: torch.Tensor, chosen: Iterable[tuple[int, Iterable[int]]]) -> torch.Tensor:
    """Where (row, token ids) pairs stand in the flattened logits; an id named twice stands there twice."""
    pairs = [(list(token_ids), index * logits.shape[1]) for index, token_ids in chosen]
    token_ids = torch.tensor(list(chain.from_iterable(ids for ids, _ in pairs)), dtype=torch.int64)
    starts = torch.tensor(list(chain.from_iterable(repeat(start, len(ids)) for ids, start in pairs)), dtype=torch.int64)
    return (token_ids + starts).to(logits.device)


def _per_place(logits: torch.Tensor, places: torch.Tensor, values: list[float]) -> torch.Tensor:
    """Each place's row's value."""
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)[places // logits.shape[1]]
