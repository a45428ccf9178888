"""What is missing is said in words, and of a whole fleet nothing is."""

from __future__ import annotations

from dataclasses import replace

from unit.router.views import DOWN, DRAINING, SERVING, executor, fleet, postprocessor, tokenizer, version
from weir_router.fleet.problems import problems
from weir_router.fleet.views import ExecutorModel, ExternalView


def test_a_whole_fleet_has_none() -> None:
    assert problems(fleet(executor()), {}, ()) == []


def test_an_empty_one_lacks_every_kind() -> None:
    said = problems(fleet(tokenizers=(), postprocessors=()), {}, ())
    assert said == [
        "no executor is healthy: 0 are known",
        "no tokenizer is healthy: 0 are known",
        "no postprocess service is healthy: 0 are known",
    ]


def test_a_model_without_a_healthy_worker_is_named() -> None:
    said = problems(fleet(executor(state=DOWN), executor("f", model="n"), tokenizers=(tokenizer(),)), {}, ())
    assert said == [
        "a request for model 'm' would find no worker of each kind",
        "a request for model 'n' would find no worker of each kind",
    ]
    kinds = problems(fleet(executor(), postprocessors=(postprocessor(state=DRAINING),)), {}, ())
    assert kinds[0] == "no postprocess service is healthy: 1 are known"


def test_a_tokenizer_that_is_too_old_is_named_as_what_to_upgrade() -> None:
    old = replace(tokenizer("old", state=DOWN), too_old=True)
    said = problems(fleet(executor(), tokenizers=(tokenizer(), old)), {}, ())
    assert said == ["tokenizer old is older than this router and is given no requests: upgrade it first"]


def test_revisions_that_disagree_departures_crowds_and_silent_sources_are_told() -> None:
    snapshot = replace(fleet(executor(), executor("odd", revision="r2")), departed=frozenset({"gone"}))
    said = problems(snapshot, {"executor": 3}, ["the broker"])
    assert len(said) == 4
    for word, sentence in zip(("'gone'", "odd", "3 more of kind executor", "the broker does not"), said, strict=True):
        assert word in sentence


def test_where_a_worker_outside_the_suite_serves_no_kind_has_to_be_there() -> None:
    outside = ExternalView("provider:p", SERVING, {"x": ExecutorModel(version(model="x"), 1, 1, 1)})
    assert problems(replace(fleet(tokenizers=(), postprocessors=()), externals=(outside,)), {}, ()) == []
