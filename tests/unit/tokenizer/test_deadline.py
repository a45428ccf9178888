from __future__ import annotations

import pytest

from weir_chassis.errors import DeadlineExceeded
from weir_chassis.testing import VirtualClock
from weir_tokenizer.deadline import Deadline


async def test_a_request_that_waited_too_long_is_not_begun() -> None:
    clock = VirtualClock()
    deadline = Deadline.after(5.0, clock)
    assert deadline.left(60.0) == 5.0
    assert deadline.left(2.0) == 2.0
    await clock.advance(5.0)
    with pytest.raises(DeadlineExceeded):
        deadline.check()
    assert Deadline.after(None, clock).left(2.0) == 2.0
