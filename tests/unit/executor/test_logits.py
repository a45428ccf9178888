"""What is done to logits, against `transformers`' processors; and that each row is left to itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation import logits_process as oracle

from weir_executor.guided.bitmask import no_tokens, put
from weir_executor.paged.logits import SampleRow, process
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


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    wanted = oracle.RepetitionPenaltyLogitsProcessor(penalty)(_input_ids(), _logits())
    found = _logits()
    process(found, [_row(Sampling(repetition_penalty=penalty))] * 4)
    torch.testing.assert_close(found, wanted)


def test_logit_bias_is_that_of_transformers() -> None:
    wanted = oracle.SequenceBiasLogitsProcessor([[[9], 2.5], [[7], -100.0]])(_input_ids(), _logits())
    found = _logits()
    process(found, [_row(Sampling(logit_bias={9: 2.5, 7: -100.0}))] * 4)
    torch.testing.assert_close(found, wanted)


def test_min_tokens_is_that_of_transformers() -> None:
    processor = oracle.MinNewTokensLengthLogitsProcessor(len(_PROMPT), 6, [2, 17], device="cpu")
    found = _logits()
    process(found, [_row(_GREEDY, forbidden=frozenset({2, 17}))] * 4)
    torch.testing.assert_close(found, processor(_input_ids(), _logits()))


def test_presence_and_frequency_count_generated_tokens_only() -> None:
    found, wanted = _logits(), _logits()
    process(found, [_row(Sampling(presence_penalty=0.5, frequency_penalty=0.25))] * 4)
    for token_id in set(_GENERATED):
        wanted[:, token_id] -= 0.5 + 0.25 * _GENERATED.count(token_id)
    torch.testing.assert_close(found, wanted)


def test_penalties_touch_their_own_row_only() -> None:
    rows = [
        _row(_GREEDY),
        _row(Sampling(repetition_penalty=1.5, logit_bias={1: 1.0})),
        _row(Sampling(presence_penalty=1.0), token_ids=[3, 9], num_prompt=1),
        _row(_GREEDY, forbidden=frozenset({4})),
        _row(Sampling(logit_bias={9: 3.0}), allowed=_only(9, 31, 499)),
    ]
    together = _logits(5)
    process(together, rows)
    for index, row in enumerate(rows):
        alone = _logits(5)[index : index + 1]
        process(alone, [row])
        assert torch.equal(together[index], alone[0])
    assert torch.equal(together[0], _logits(5)[0])


def _only(*token_ids: int) -> Any:
    words = no_tokens(_VOCAB)
    for token_id in token_ids:
        put(words, token_id, present=True)
    return words


def test_a_guide_leaves_what_it_allows_and_nothing_else() -> None:
    found = _logits(3)
    process(found, [_row(_GREEDY), _row(_GREEDY, allowed=_only(0, 31, 32, 499)), _row(_GREEDY)])
    assert found[1].isfinite().nonzero().flatten().tolist() == [0, 31, 32, 499]
    assert torch.equal(found[1, [0, 499]], _logits(3)[1, [0, 499]])
    assert torch.equal(found[::2], _logits(3)[::2])
