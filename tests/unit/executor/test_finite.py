from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weir_executor.paged.finite import all_finite

_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", _DTYPES)
@given(words=st.lists(st.integers(0, 255), max_size=64))
def test_as_pytorch_says_of_any_bytes(dtype: torch.dtype, words: list[int]) -> None:
    payload = bytes(words[: len(words) // 4 * 4])
    numbers = torch.frombuffer(bytearray(payload), dtype=dtype) if payload else torch.empty(0)
    assert all_finite(payload, dtype) == bool(numbers.isfinite().all())


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_that_is_no_number_is_found_anywhere(dtype: torch.dtype, wrong: float, place: int) -> None:
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(3)).to(dtype)
    numbers[0] = torch.finfo(dtype).max
    assert all_finite(memoryview(numbers.view(torch.uint8).numpy().tobytes()), dtype)
    numbers[place] = wrong
    assert not all_finite(numbers.view(torch.uint8).numpy().tobytes(), dtype)
