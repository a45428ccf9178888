"""Where the tests compute: on a CUDA device if there is one, else Triton's kernels run in its interpreter.

And the real servers that tests share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from servers import NatsServer, nats_server

# Triton looks at this once, when it is imported, so it is said before any test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One NATS with JetStream, for tests that leave it running."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server
