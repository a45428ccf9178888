"""Which sizes batches are padded to, and how work is captured."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged.cuda.graphs import CudaGraphs, batch_sizes, size_for


def test_sizes_are_close_where_batches_are_small() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(3) == [1, 2, 3]
    assert batch_sizes(40) == [1, 2, 4, 8, 16, 24, 32, 40]
    assert batch_sizes(256) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]


@given(most=st.integers(1, 4096), share=st.floats(0.0, 1.0))
def test_every_batch_fits_a_size_that_pads_little(most: int, share: float) -> None:
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    count = max(1, round(share * most))
    size = size_for(sizes, count)
    assert count <= size <= max(8, count + 7, count * 1.5)
    assert all(smaller < count for smaller in sizes if smaller < size)


def test_graphs_warm_up_aside_and_share_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls in their order, on a double of CUDA: a run aside, then a recorded one in the first one's pool."""
    calls: list[object] = []

    class Graph:
        def replay(self) -> None:
            calls.append("replay")

        def pool(self) -> str:
            return "the pool"

    class Stream:
        def wait_stream(self, _: object) -> None:
            calls.append("wait")

    @contextmanager
    def within(name: object):  # type: ignore[no-untyped-def]
        calls.append(name)
        yield

    cuda = SimpleNamespace(
        Stream=Stream,
        current_stream=Stream,
        CUDAGraph=Graph,
        stream=lambda _: within("aside"),
        graph=lambda _, pool, capture_error_mode: within(("record", pool)),
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    graphs = CudaGraphs()

    def run() -> torch.Tensor:
        calls.append("run")
        return torch.zeros(2)

    replay, output = graphs.capture(run)
    assert calls == ["wait", "aside", "run", "wait", ("record", None), "run"]
    calls.clear()
    graphs.capture(run)
    assert ("record", "the pool") in calls
    calls.clear()
    replay()
    assert calls == ["replay"]
    assert output.tolist() == [0.0, 0.0]


@pytest.mark.cuda
def test_a_replay_reads_what_its_memory_holds_by_then() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    graphs, number = CudaGraphs(), torch.ones(3, device="cuda")
    replay, doubled = graphs.capture(lambda: number * 2)
    _, tripled = graphs.capture(lambda: number * 3)
    number.fill_(7.0)
    replay()
    assert doubled.tolist() == [14.0] * 3
    assert tripled.data_ptr() != number.data_ptr()
