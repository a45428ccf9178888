from __future__ import annotations

import pytest
import torch

from bench.accuracy import difference


def test_equal_logits_differ_in_nothing() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    found = difference(logits, logits.clone())
    assert (found.largest_logit_error, found.mean_logit_error, found.same_best) == (0.0, 0.0, 1.0)
    assert found.divergence == pytest.approx(0.0, abs=1e-7)


def test_a_difference_is_what_it_is_by_hand() -> None:
    exact = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    rounded = torch.tensor([[0.5, 1.0], [0.0, 1.0]])
    found = difference(exact, rounded)
    assert found.largest_logit_error == 2.0
    assert found.mean_logit_error == pytest.approx((0.5 + 0 + 2 + 1) / 4)
    assert found.same_best == 0.5


def test_the_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    exact, rounded = (torch.randn(9, 11, generator=generator) for _ in range(2))
    divergence = torch.nn.functional.kl_div(
        rounded.log_softmax(-1), exact.log_softmax(-1), reduction="batchmean", log_target=True
    )
    assert difference(exact, rounded).divergence == pytest.approx(divergence.item(), rel=1e-5)
