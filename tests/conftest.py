"""Where the tests compute: on a CUDA device if there is one, else Triton's kernels run in its interpreter.

What a test may not leave behind, and the real servers that tests share.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator, Iterator

import hypothesis
import pytest
import torch

import weir_chassis  # noqa: F401  # before gRPC, which looks once whether it is to hear of forks
from servers import NatsServer, nats_server

# Triton looks at this once, when it is imported, so it is said before any test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# As one of several processes: threads of all of them on the same cores would wait for one another at every operation.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Nothing is found by how long an example takes where others take the cores.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("busy")

_complaints: list[str] = []


class _Complaints(logging.Handler):
    """Hears what asyncio says of a task that failed and that nobody asked, or that was dropped before its end."""

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        if "never retrieved" in told or "was destroyed but it is pending" in told:
            _complaints.append(told)


logging.getLogger("asyncio").addHandler(_Complaints(logging.ERROR))


def pytest_collection_finish() -> None:
    """What is there by now stays: so that looking for what tests leave takes a moment, and no walk through PyTorch."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """What a test leaves goes with it, or with its module's last, and so does what asyncio has to complain of.

    Later it would be some other test's. A complaint that comes while Python builds a syntax tree even breaks that, and
    in tests `inspect` and Hypothesis build many (SystemError, https://github.com/python/cpython/issues/106905).
    """
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    else:
        gc.collect(1)
    complaints, _complaints[:] = _complaints[:], []
    assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One NATS with JetStream, for tests that leave it running."""
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server
