"""The breakers of a fleet: who is marked in its snapshots, and when."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.router.views import DOWN, DRAINING, SERVING, executor, fleet, postprocessor, tokenizer
from weir_chassis.errors import Internal, InvalidArgument
from weir_chassis.metrics import Metrics
from weir_chassis.testing import VirtualClock
from weir_router.faults.breaker import BreakerLimits, State
from weir_router.faults.breakers import Breakers, watched
from weir_router.fleet.snapshot import FleetSnapshot
from weir_router.metrics import RouterMetrics


class Bench:
    def __init__(self, max_share: float = 0.5) -> None:
        self.clock, self.metrics, self.changes = VirtualClock(), RouterMetrics(Metrics("test")), 0
        self.breakers = Breakers(
            BreakerLimits(failures_in_a_row=2, first_seconds=1.0),
            max_share,
            clock=self.clock,
            random=Random(0),
            metrics=self.metrics,
            on_change=self.changed,
        )

    def changed(self) -> None:
        self.changes += 1

    def break_(self, worker: str, model: str = "m") -> None:
        for _ in range(2):
            with pytest.raises(Internal), watched(self.breakers.begin(worker, model)):
                raise Internal("a step failed")

    def ejected(self, snapshot: FleetSnapshot) -> set[str]:
        marked = self.breakers.mark(snapshot)
        assert replace_all(marked) == replace_all(snapshot), "nothing else is another"
        return {
            w.address
            for kind in (marked.executors, marked.tokenizers, marked.postprocessors)
            for w in kind
            if w.ejected
        }


def replace_all(snapshot: FleetSnapshot) -> FleetSnapshot:
    return replace(
        snapshot,
        executors=tuple(replace(worker, ejected=False) for worker in snapshot.executors),
        tokenizers=tuple(replace(worker, ejected=False) for worker in snapshot.tokenizers),
        postprocessors=tuple(replace(worker, ejected=False) for worker in snapshot.postprocessors),
    )


def test_a_fleet_that_is_well_is_shown_as_it_is() -> None:
    bench, snapshot = Bench(), fleet(executor("a"), executor("b"))
    with watched(bench.breakers.begin("a", "m")):
        pass
    assert bench.breakers.mark(snapshot) is snapshot
    assert bench.changes == 0


async def test_who_fails_is_marked_until_it_has_shown_that_it_works() -> None:
    bench, snapshot = Bench(), fleet(executor("a"), executor("b"))
    bench.break_("a")
    assert bench.ejected(snapshot) == {"a"}
    assert bench.changes == 1
    await bench.clock.advance(1.0)
    assert bench.ejected(snapshot) == {"a"}, "no probe was answered since"
    bench.breakers.answered_probe("b")
    assert bench.ejected(snapshot) == {"a"}, "another one's"
    bench.breakers.answered_probe("a")
    assert bench.ejected(snapshot) == set()
    trial = bench.breakers.begin("a", "m")
    assert bench.ejected(snapshot) == {"a"}, "one at a time"
    trial.succeeded()
    assert bench.ejected(snapshot) == set()
    assert bench.changes == 4, "opened, to be tried, being tried, closed"


def test_each_model_of_a_worker_has_its_own() -> None:
    bench = Bench()
    bench.break_("a", "n")
    assert bench.ejected(fleet(executor("a"), executor("b"))) == set()
    assert bench.ejected(fleet(executor("a", model="n"), executor("b", model="n"))) == {"a"}


def test_tokenizers_and_postprocessors_have_one_each() -> None:
    bench = Bench()
    bench.break_("t", "")
    bench.break_("p", "")
    snapshot = fleet(
        executor(), tokenizers=(tokenizer("t"), tokenizer("u")), postprocessors=(postprocessor("p"), postprocessor("q"))
    )
    assert bench.ejected(snapshot) == {"t", "p"}


@given(
    st.lists(st.tuples(st.sampled_from("mn"), st.sampled_from([SERVING, DRAINING, DOWN]), st.booleans()), max_size=10),
    st.floats(0, 0.99),
)
def test_nobody_is_left_out_of_whom_too_few_would_be_left(
    workers: list[tuple[str, object, bool]], max_share: float
) -> None:
    bench, views = Bench(max_share), []
    for number, (model, state, broken) in enumerate(workers):
        views.append(executor(f"e{number}", model=model, state=state))  # type: ignore[arg-type]  # one of WorkerState
        if broken:
            bench.break_(f"e{number}", model)
    out = bench.ejected(fleet(*views))
    for model in "mn":
        pool = {
            view.address for view in views if view.model and view.model.version.model == model and view.state is SERVING
        }
        assert len(out & pool) <= max_share * len(pool)
        assert not pool or pool - out, "somebody is there for every model that anybody serves"
    assert out <= {view.address for view in views if view.state is SERVING}


def test_who_has_left_is_forgotten() -> None:
    bench, snapshot = Bench(), fleet(executor("a"), executor("b"))
    bench.break_("a")
    bench.breakers.forget("a")
    assert bench.ejected(snapshot) == set()
    assert bench.metrics.breakers.labels("open")._value.get() == 0


def test_what_is_shown_to_operators() -> None:
    bench = Bench()
    bench.break_("a")
    bench.break_("b")
    moves, open_ = bench.metrics.breaker_moves.labels("open"), bench.metrics.breakers.labels("open")
    assert (moves._value.get(), open_._value.get()) == (2, 2)
    bench.breakers.begin("b", "m").succeeded()  # it was used all the same
    assert (moves._value.get(), open_._value.get()) == (2, 1)
    assert bench.metrics.breaker_moves.labels(State.CLOSED.value)._value.get() == 1


async def test_a_cancelled_call_and_a_clients_fault_say_nothing() -> None:
    bench = Bench()
    for _ in range(9):
        with pytest.raises(InvalidArgument), watched(bench.breakers.begin("a", "m")):
            raise InvalidArgument("n", "is wrong")
        with pytest.raises(KeyboardInterrupt), watched(bench.breakers.begin("a", "m")):
            raise KeyboardInterrupt
    assert bench.changes == 0
