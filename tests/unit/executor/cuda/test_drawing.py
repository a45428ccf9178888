"""Draws on the device against the sampler's, and its random numbers against NumPy's, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from weir_executor.paged.cuda.drawing import GREEDY, Asked, asked_numbers, draw
from weir_executor.paged.cuda.kernels import draw as kernels
from weir_executor.paged.logits import SampleRow
from weir_executor.paged.philox import uniforms
from weir_executor.paged.sampler import sample
from weir_executor.request import Sampling

_VOCAB = 700

_SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "plain": Sampling(temperature=1.0),
    "cool": Sampling(temperature=0.3),
    "hot": Sampling(temperature=3.0),
    "top_k": Sampling(top_k=7),
    "top_k_1": Sampling(top_k=1),
    "top_k_beyond": Sampling(top_k=100_000),
    "top_p": Sampling(top_p=0.6),
    "top_p_little": Sampling(top_p=1e-6),
    "min_p": Sampling(min_p=0.2),
    "all": Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01),
}


@triton.jit
def _uniforms(asked, out):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    asked += row * 8 + 4
    number = kernels.uniform(tl.load(asked), tl.load(asked + 1), tl.load(asked + 2), tl.load(asked + 3))
    tl.store(out + row, number)


def test_random_numbers_are_those_of_the_sampler_bit_for_bit(device: torch.device) -> None:
    seeds = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -1, 123456789123456789]
    outputs, positions = [0, 1, 2, 3, 0, 15, 7, 1], [0, 1, 100, 131071, 5, 2**31 - 1, 9, 77]
    rows = [Asked(Sampling(seed=seed), output, at) for seed, output, at in zip(seeds, outputs, positions, strict=True)]
    asked = torch.tensor(asked_numbers(rows), dtype=torch.int32, device=device)
    found = torch.empty(8, dtype=torch.float64, device=device)
    _uniforms[(8,)](asked, found)
    assert found.tolist() == uniforms(seeds, outputs, positions).tolist()


@pytest.mark.parametrize("sampling", _SAMPLINGS.values(), ids=_SAMPLINGS.keys())
def test_draws_are_those_of_the_sampler(device: torch.device, sampling: Sampling) -> None:
    count = 6
    logits = torch.randn((count, _VOCAB), generator=torch.Generator().manual_seed(5)) * 2
    logits = (logits * 8).round() / 8  # as coarse as a narrow dtype's: ties
    rows = [
        SampleRow(_seeded(sampling, seed), output_index=seed % 2, token_ids=[1] * (3 + seed), num_prompt=3)
        for seed in range(count)
    ]
    expected = [drawn.token_id for drawn in sample(logits.clone(), rows)]
    asked = asked_numbers(Asked(row.sampling, row.output_index, len(row.token_ids)) for row in rows)
    found = torch.empty(count, dtype=torch.int32, device=device)
    draw(logits.to(device), torch.tensor(asked, dtype=torch.int32, device=device), found)
    assert found.tolist() == expected


def test_a_row_that_is_not_finite_says_so_and_disturbs_no_other(device: torch.device) -> None:
    logits = torch.zeros((4, _VOCAB))
    logits[0, 3], logits[1, 9], logits[2, 8], logits[3, 7] = torch.nan, 1.0, torch.inf, 2.0
    asked = asked_numbers(Asked(Sampling(temperature=t), 0, 0) for t in (0.0, 0.0, 1.0, 0.0))
    found = torch.empty(4, dtype=torch.int32, device=device)
    draw(logits.to(device), torch.tensor(asked, dtype=torch.int32, device=device), found)
    assert found.tolist() == [-1, 9, -1, 7]


def test_the_lowest_id_wins_among_equals(device: torch.device) -> None:
    logits = torch.zeros((1, 9000))
    logits[0, [8999, 4097, 5000]] = 1.0
    found = torch.empty(1, dtype=torch.int32, device=device)
    draw(logits.to(device), torch.tensor(GREEDY, dtype=torch.int32, device=device), found)
    assert found.tolist() == [4097]


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return replace(sampling, seed=seed)
