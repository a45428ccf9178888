"""Which model a request means, and which executors agree with the tokenizers about it."""

from __future__ import annotations

import pytest

from unit.router.views import DOWN, DRAINING, executor, fleet, tokenizer, unknown_executor, version
from weir_chassis.errors import InvalidArgument, ModelNotFound, NotFound, NoWorker, RevisionMismatch, WeirError
from weir_router.fleet.snapshot import FleetSnapshot


@pytest.mark.parametrize(
    ("snapshot", "name", "expected"),
    [
        (fleet(executor()), "m", "m"),
        (fleet(executor()), "", "m"),
        (fleet(executor(state=DOWN)), "m", "m"),
        (fleet(executor("a"), executor("b", model="other")), "other", "other"),
        (fleet(executor("a"), unknown_executor("b")), "m", "m"),
        (fleet(executor("a"), unknown_executor("b")), "", "m"),
    ],
)
def test_a_model_is_found(snapshot: FleetSnapshot, name: str, expected: str) -> None:
    assert snapshot.resolve_model(name) == expected


def test_an_adapter_is_what_most_executors_hold_under_its_name() -> None:
    snapshot = fleet(
        executor("a", adapters={"x": "f2"}),
        executor("b", adapters={"x": "f1", "y": "f3"}),
        executor("c", adapters={"x": "f1"}),
        executor("d", adapters={"x": "f2"}, revision="r2"),
        executor("e", adapters={"x": "f2"}, state=DOWN),
        executor("f", model="other", adapters={"z": "f9"}),
        tokenizers=(tokenizer(), tokenizer("u", model="other")),
    )
    assert [snapshot.resolve_adapter("m", name) for name in ("", "x", "y")] == ["", "f1", "f3"]
    assert [view.address for view in snapshot.agreed("m", "f1")] == ["b", "c"]
    with pytest.raises(NotFound, match="'z'"):
        snapshot.resolve_adapter("m", "z")
    with pytest.raises(NotFound):
        snapshot.agreed("m", "f9")


def test_an_adapter_of_an_executor_that_is_away_is_not_unheard_of() -> None:
    snapshot = fleet(executor("a"), executor("b", state=DOWN, adapters={"x": "f1"}))
    with pytest.raises(NoWorker, match="'x'"):
        snapshot.resolve_adapter("m", "x")


@pytest.mark.parametrize(
    ("snapshot", "name", "error"),
    [
        (fleet(), "m", NoWorker),
        (fleet(), "", NoWorker),
        (fleet(unknown_executor("a")), "m", NoWorker),
        (fleet(executor(), unknown_executor("b")), "other", NoWorker),
        (fleet(executor()), "other", ModelNotFound),
        (fleet(executor("a"), executor("b", model="n")), "", InvalidArgument),
    ],
)
def test_a_model_is_not_found(snapshot: FleetSnapshot, name: str, error: type[WeirError]) -> None:
    with pytest.raises(error):
        snapshot.resolve_model(name)


def test_an_unknown_model_says_what_is_known() -> None:
    with pytest.raises(ModelNotFound) as caught:
        fleet(executor("a"), executor("b", model="n")).resolve_model("x")
    assert caught.value.metadata == {"known": "m,n"}


def addresses(snapshot: FleetSnapshot) -> list[str]:
    return [view.address for view in snapshot.agreed("m")]


def test_only_serving_executors_of_a_tokenizers_revision_may_be_given_requests() -> None:
    snapshot = fleet(
        executor("good"),
        executor("old", revision="r0"),
        executor("draining", state=DRAINING),
        executor("down", state=DOWN),
        executor("other", model="n"),
    )
    assert addresses(snapshot) == ["good"]
    assert snapshot.mismatched() == ["old"]


def test_while_two_revisions_are_rolled_out_both_serve() -> None:
    snapshot = fleet(
        executor("a"), executor("b", revision="r2"), tokenizers=(tokenizer("t"), tokenizer("u", revision="r2"))
    )
    assert addresses(snapshot) == ["a", "b"]
    assert not snapshot.mismatched()


def test_a_tokenizer_that_is_away_is_believed_only_when_none_answers() -> None:
    away = tokenizer("u", revision="r2", state=DOWN)
    assert addresses(fleet(executor("a", revision="r2"), tokenizers=(away,))) == ["a"]
    with pytest.raises(RevisionMismatch):
        fleet(executor("a", revision="r2"), tokenizers=(tokenizer("t"), away)).agreed("m")


def test_a_mismatch_names_both_revisions() -> None:
    with pytest.raises(RevisionMismatch) as caught:
        fleet(executor(revision="r2")).agreed("m")
    assert caught.value.metadata == {
        "executor_revision": str(version("r2")),
        "tokenizer_revision": str(version("r1")),
    }
    assert str(version("r2")).startswith("r2/")


@pytest.mark.parametrize(
    "snapshot",
    [fleet(), fleet(executor(state=DOWN)), fleet(executor(), tokenizers=())],
    ids=["empty", "down", "no tokenizer"],
)
def test_without_workers_there_is_no_agreement(snapshot: FleetSnapshot) -> None:
    with pytest.raises(NoWorker):
        snapshot.agreed("m")


def test_a_template_is_the_versions_own() -> None:
    snapshot = fleet(executor(), tokenizers=(tokenizer("t", template=False), tokenizer("u", revision="r2")))
    assert not snapshot.has_chat_template(version("r1"))
    assert snapshot.has_chat_template(version("r2"))


def test_a_named_revision_is_the_only_one_that_agrees() -> None:
    snapshot = fleet(
        executor("a", adapters={"x": "f1"}),
        executor("b", revision="r2"),
        tokenizers=(tokenizer("t"), tokenizer("u", revision="r2")),
    )
    assert [view.address for view in snapshot.agreed("m", revision="r2")] == ["b"]
    assert snapshot.answers("m", "r1")
    assert snapshot.answers("m", "r2")
    assert not snapshot.answers("m", "r3")
    assert snapshot.resolve_adapter("m", "x", "r1") == "f1"
    with pytest.raises(NotFound):
        snapshot.resolve_adapter("m", "x", "r2")
    with pytest.raises(NoWorker, match="at revision 'r3'"):
        snapshot.agreed("m", revision="r3")


def test_a_revision_whose_tokenizer_is_away_is_not_mismatched_by_that_of_another() -> None:
    away = tokenizer("u", revision="r2", state=DOWN)
    snapshot = fleet(executor("a"), executor("b", revision="r2"), tokenizers=(tokenizer("t"), away))
    assert [view.address for view in snapshot.agreed("m", revision="r2")] == ["b"]
    assert not snapshot.answers("m", "r2")
    with pytest.raises(RevisionMismatch):
        fleet(executor("b", revision="r2")).agreed("m", revision="r2")
