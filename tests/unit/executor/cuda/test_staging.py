"""Parts travel together, aligned, and land where a captured graph looks for them."""

from __future__ import annotations

import pytest
import torch

from weir_executor.paged.cuda.staging import Staging


def test_parts_land_aligned_in_one_buffer_at_one_address(device: torch.device) -> None:
    staging = Staging(32, device)
    expected = [[1, 2, 3], [], [-4], [5, 6, 7, 8, 9]]
    views = staging.views([3, 0, 1, 5])
    found = staging.upload(expected)
    assert [part.tolist() for part in found] == expected
    assert all(part.data_ptr() % 16 == staging.numbers.data_ptr() % 16 for part in found if len(part))
    for numbers in ([[i] * 3, [], [i], [i] * 5] for i in range(5)):
        staging.upload(numbers)
        assert [view.tolist() for view in views] == numbers


def test_more_than_there_is_room_for_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="9 numbers do not fit 8"):
        Staging(8, torch.device("cpu")).upload([[1], [2] * 5])
