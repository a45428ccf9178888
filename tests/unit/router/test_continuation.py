"""When a stream may go on, and in whose words."""

from __future__ import annotations

import pytest

from weir.inference.v1 import routing_pb2
from weir_chassis.errors import Draining, Internal, WorkerLost
from weir_router.continuation import Mode, may_go_on, mode_of, told


@pytest.mark.parametrize("configured", Mode)
def test_what_the_client_asks_for_counts_before_what_its_model_is_configured_for(configured: Mode) -> None:
    assert mode_of(routing_pb2.CONTINUATION_MODE_UNSPECIFIED, configured) is configured
    assert mode_of(routing_pb2.CONTINUATION_MODE_EXACT, configured) is Mode.EXACT
    assert mode_of(routing_pb2.CONTINUATION_MODE_BEST_EFFORT, configured) is Mode.BEST_EFFORT
    assert mode_of(routing_pb2.CONTINUATION_MODE_NONE, configured) is Mode.NONE


def test_before_the_first_token_there_is_nothing_to_continue_and_nothing_against_another_try() -> None:
    assert all(may_go_on(mode, drawn=False, complete=complete) for mode in Mode for complete in (True, False))


def test_after_it_all_tokens_must_be_there_and_the_client_must_want_it() -> None:
    assert may_go_on(Mode.EXACT, drawn=True, complete=True)
    assert may_go_on(Mode.BEST_EFFORT, drawn=True, complete=True)
    assert not may_go_on(Mode.EXACT, drawn=True, complete=False)
    assert not may_go_on(Mode.NONE, drawn=True, complete=True)


def test_a_worker_that_drains_under_a_stream_is_a_lost_one_to_its_client() -> None:
    error = told(Draining("the service shut down"), "e:1")
    assert isinstance(error, WorkerLost)
    assert (error.metadata, error.message) == ({"worker": "e:1"}, "e:1 was lost: the service shut down")
    failed = Internal("a step failed")
    assert told(failed, "e:1") is failed
