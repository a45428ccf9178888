"""What follows from what a request asks."""

from __future__ import annotations

import pytest

from weir_executor.request import Sampling, Watermark


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_k=5, top_p=0.9, seed=3)])
def test_how_far_the_logits_are_cut_and_drawn_from_changes_nothing_about_them(sampling: Sampling) -> None:
    assert sampling.is_plain


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_logprobs=0),
        Sampling(repetition_penalty=1.1),
        Sampling(presence_penalty=0.5),
        Sampling(frequency_penalty=-0.5),
        Sampling(logit_bias={7: 1.0}),
        Sampling(watermark=Watermark(key=bytes(16))),
    ],
)
def test_whatever_changes_logits_or_wants_to_see_them_is_not_plain(sampling: Sampling) -> None:
    assert not sampling.is_plain


def test_a_watermarks_key_is_in_no_log() -> None:
    assert "secret" not in repr(Sampling(watermark=Watermark(key=b"a secret, 16 b.s")))
