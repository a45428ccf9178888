"""Which report of a load is the newer, and what it tells."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir.executor.v1.executor_pb2 import GetLoadResponse
from weir_router.fleet.load_report import LoadReport
from weir_router.fleet.views import Load


def report(epoch: int, step: int, made_at: float) -> LoadReport:
    return LoadReport(GetLoadResponse(epoch=epoch, step=step), made_at)


@given(st.permutations([(step, step * 2.0) for step in range(5)]))
def test_whatever_order_reports_come_in_the_newest_stands(order: list[tuple[int, float]]) -> None:
    known = None
    for step, made_at in order:
        if (each := report(7, step, made_at)).follows(known):
            known = each
    assert known is not None
    assert known.response.step == 4


def test_another_incarnation_counts_from_its_own_beginning() -> None:
    assert report(8, 1, 1.0).follows(report(7, 1000, 2.0))
    assert report(8, 1, 1.0).has_progressed(report(7, 1, 0.0))


def test_one_without_a_new_step_is_newer_and_no_progress() -> None:
    assert report(7, 5, 2.0).follows(report(7, 5, 1.0))
    assert not report(7, 5, 2.0).has_progressed(report(7, 5, 1.0))
    assert not report(7, 5, 1.0).follows(report(7, 5, 2.0)), "it was overtaken"


def test_a_load_has_the_age_of_its_question() -> None:
    said = GetLoadResponse(
        epoch=7,
        step=5,
        waiting_requests=1,
        running_sequences=2,
        free_blocks=3,
        total_blocks=4,
        tokens_per_second=50.0,
        outstanding_prefill_tokens=6,
    )
    said.last_step.FromMilliseconds(20)
    load = LoadReport(said, 10.0).load(now=12.5)
    assert load == Load(7, 5, 2.5, 1, 2, 3, 4, 50.0, 0.02, 6, None)
    said.prefill_token_seconds = 0.001
    assert LoadReport(said, 10.0).load(now=9.0) == Load(7, 5, 0.0, 1, 2, 3, 4, 50.0, 0.02, 6, 0.001)
