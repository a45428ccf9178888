"""Hidden states summed over chunks, and the vectors that they come to: by hand, and as `transformers` pools them."""

from __future__ import annotations

import pytest
import torch

from contract.engine_contract import Listener, pooled, prompt, request
from models_fixture import FAMILIES, tiny_model
from unit.executor.oracle import reference, reference_greedy
from weir_executor.paged.batch import Scheduled
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.pooling import pool
from weir_executor.paged.sequence import LiveRequest, Sequence
from weir_executor.request import Pooling, PoolingKind

_LENGTHS = (1, 5, 33, 90)


def _sequence(length: int, kind: PoolingKind, *, normalize: bool = False) -> Sequence:
    asked = request(1, list(range(length)), 0, pooling=Pooling(kind, normalize))
    return Sequence(LiveRequest(asked, 0, frozenset(), False, 0.0), 0, list(range(length)), [])


def test_a_mean_is_summed_over_chunks_and_divided_once() -> None:
    sequence, hidden = _sequence(5, PoolingKind.MEAN), torch.arange(10.0).reshape(5, 2)
    assert pool([Scheduled(sequence, 0, 3)], hidden[:3]) == {}
    assert pool([Scheduled(sequence, 3, 1)], hidden[3:4]) == {}
    (vector,) = pool([Scheduled(sequence, 4, 1)], hidden[4:]).values()
    assert vector.values == [4.0, 5.0]


def test_rows_of_all_kinds_take_their_own_part_of_the_hidden_states() -> None:
    mean, last = _sequence(2, PoolingKind.MEAN), _sequence(3, PoolingKind.LAST, normalize=True)
    unfinished = _sequence(9, PoolingKind.LAST)
    generating = Sequence(LiveRequest(request(2, [1, 2]), 0, frozenset(), False, 0.0), 0, [1, 2], [])
    rows = [Scheduled(generating, 1, 1), Scheduled(mean, 0, 2), Scheduled(unfinished, 0, 4), Scheduled(last, 0, 3)]
    vectors = pool(rows, torch.tensor([[1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]))
    assert vectors.keys() == {1, 3}
    assert vectors[1].values == [2.0, 3.0]
    assert vectors[3].values == pytest.approx([0.6, 0.8])
    assert unfinished.pooled is None


def test_a_vector_of_zeros_stays_one() -> None:
    (vector,) = pool([Scheduled(_sequence(1, PoolingKind.LAST, normalize=True), 0, 1)], torch.zeros(1, 4)).values()
    assert vector.values == [0.0] * 4


def _transformers_vector(family: str, token_ids: list[int], kind: PoolingKind) -> list[float]:
    with torch.inference_mode():
        hidden = reference(family).base_model(torch.tensor([token_ids])).last_hidden_state[0].float()
    vector = hidden.mean(dim=0) if kind is PoolingKind.MEAN else hidden[-1]
    return [float(value) for value in vector]


@pytest.mark.parametrize("kind", PoolingKind)
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_beside_generation_are_those_of_transformers_and_so_are_the_tokens(
    family: str, kind: PoolingKind
) -> None:
    config = PagedEngineConfig(tiny_model(family), num_blocks=64, num_threads=1, max_batched_tokens=24, max_num_seqs=8)
    engine, heard = load_engine(config), Listener()
    engine.start(heard)
    try:
        engine.submit(request(100, prompt(20), 12))
        for key, length in enumerate(_LENGTHS):
            engine.submit(request(key, prompt(length, start=key), 0, pooling=Pooling(kind, normalize=False)))
        engine.submit(pooled(50, prompt(7), kind))
        ends = heard.wait_for_ends(*range(len(_LENGTHS)), 50, 100)
    finally:
        engine.close()
    for key, length in enumerate(_LENGTHS):
        wanted = torch.tensor(_transformers_vector(family, prompt(length, start=key), kind))
        torch.testing.assert_close(torch.tensor(ends[key].embedding), wanted, rtol=1e-4, atol=1e-4)
    assert heard.tokens[100, 0] == reference_greedy(family, prompt(20), 12)
