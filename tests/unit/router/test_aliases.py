"""Aliases in force: who gets which target, what is counted, and what a change of the file keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any

from unit.router.views import executor, fleet
from weir_router.models.aliases import Aliases, TargetView, unserved
from weir_router.models.canary import Stage
from weir_router.models.config import AliasTable, CanaryTable, TargetTable
from weir_router.models.outcome import End, Outcome
from weir_router.models.target import Target

GOOD, BAD = Outcome(End.ANSWERED, 0.1), Outcome(End.FAILED, None)
OLD = TargetTable(model="m", revision="r1", weight=80)
NEW = TargetTable(
    model="m", revision="r2", weight=20, arm="new", canary=CanaryTable(steps=(0.05,), step_seconds=10, min_requests=5)
)


def tables(*targets: TargetTable) -> dict[str, AliasTable]:
    return {"chat": AliasTable(targets=targets)}


def arms(aliases: Aliases, count: int = 2000) -> Counter[str]:
    return Counter(aliases.order("chat", f"s{number}")[0].revision for number in range(count))


def note(aliases: Aliases, revision: str, outcome: Outcome, times: int, start: float = 0.0) -> list[TargetView]:
    target = next(t for t in (OLD.target("chat"), NEW.target("chat")) if t.revision == revision)
    views = [aliases.note(target, outcome, start + number) for number in range(times)]
    return [view for view in views if view is not None]


def view_of(aliases: Aliases, revision: str) -> TargetView:
    return next(view for view in aliases.view()["chat"] if view.target.revision == revision)


def test_targets_say_which_alias_and_arm_they_are() -> None:
    aliases = Aliases(tables(OLD, NEW))
    assert "chat" in aliases
    assert "m" not in aliases
    assert {target for s in range(200) for target in aliases.order("chat", str(s))} == {
        Target("m", "r1", "chat", ""),
        Target("m", "r2", "chat", "new"),
    }


def test_a_canary_begins_at_its_first_step() -> None:
    aliases = Aliases(tables(OLD, NEW))
    assert 0.03 < arms(aliases)["r2"] / 2000 < 0.07
    view = view_of(aliases, "r2")
    assert (view.weight, round(view.weight_now, 3), view.stage) == (20, 4.211, Stage.RAMPING)


def test_a_canary_that_does_well_gets_its_weight() -> None:
    aliases = Aliases(tables(OLD, NEW))
    note(aliases, "r1", GOOD, 20)
    changes = note(aliases, "r2", GOOD, 20)
    assert [change.stage for change in changes] == [Stage.ARRIVED]
    assert (view_of(aliases, "r2").weight_now, view_of(aliases, "r2").reason) == (20.0, "")
    assert 0.17 < arms(aliases)["r2"] / 2000 < 0.23


def test_a_canary_that_fails_gets_nothing_and_says_why() -> None:
    aliases = Aliases(tables(OLD, NEW))
    note(aliases, "r1", GOOD, 50)
    changes = note(aliases, "r2", BAD, 20)
    assert [change.stage for change in changes] == [Stage.ROLLED_BACK]
    assert arms(aliases) == {"r1": 2000}
    view = view_of(aliases, "r2")
    assert (view.weight_now, view.requests, view.failed_requests) == (0.0, 20, 20)
    assert view.reason.startswith("error rate 5 of 5")


def test_a_reload_that_leaves_the_canary_alone_keeps_what_is_known_of_it() -> None:
    aliases = Aliases(tables(OLD, NEW))
    note(aliases, "r1", GOOD, 50)
    note(aliases, "r2", BAD, 20)
    aliases.apply(tables(OLD, NEW) | {"other": AliasTable(targets=(OLD,))})
    assert aliases.names == ["chat", "other"]
    assert view_of(aliases, "r2").stage is Stage.ROLLED_BACK
    assert view_of(aliases, "r2").failed_requests == 20


def test_a_canary_with_another_table_is_another_canary() -> None:
    aliases = Aliases(tables(OLD, NEW))
    note(aliases, "r1", GOOD, 50)
    note(aliases, "r2", BAD, 20)
    aliases.apply(tables(OLD, NEW.model_copy(update={"revision": "r3"})))
    assert view_of(aliases, "r3").stage is Stage.RAMPING


def test_what_comes_of_a_target_that_is_gone_is_nobodys() -> None:
    aliases = Aliases(tables(OLD))
    assert note(aliases, "r2", BAD, 5) == []
    aliases.apply({})
    assert note(aliases, "r1", BAD, 5) == []


def test_weights_are_followed_without_a_canary() -> None:
    targets: list[dict[str, Any]] = [{"model": "m", "revision": "r1"}, {"model": "m", "revision": "r2", "weight": 0}]
    aliases = Aliases({"chat": AliasTable.model_validate({"targets": targets})})
    assert arms(aliases) == {"r1": 2000}
    assert [view.weight_now for view in aliases.view()["chat"]] == [1.0, 0.0]


def test_targets_that_nobody_serves_are_told_of() -> None:
    aliases = Aliases(tables(OLD, NEW))
    assert list(unserved(aliases.view(), fleet(executor()))) == ["alias chat: nobody serves m@r2"]
    note(aliases, "r1", GOOD, 50)
    note(aliases, "r2", BAD, 20)
    assert list(unserved(aliases.view(), fleet(executor()))) == []
