from __future__ import annotations

import os
from pathlib import Path

import pytest

from weir_executor.trtllm.connector.told import VARIABLE, Told, read_told, telling

TOLD = Told("store:50051", Path("/dev/shm/weir-connector-1"), 32, "fp8", 1 << 20, 2e8)


def test_what_is_told_is_read_by_processes_started_meanwhile_and_by_no_others() -> None:
    with telling(TOLD):
        assert read_told(os.environ) == TOLD
    with pytest.raises(ValueError, match=VARIABLE):
        read_told(os.environ)


def test_the_engine_forwards_the_variable_to_its_processes() -> None:
    """It does so with names that begin like this, and no others."""
    assert VARIABLE.startswith(("TLLM", "TRTLLM"))
