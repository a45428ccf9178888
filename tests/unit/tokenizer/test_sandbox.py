from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from jinja2.exceptions import TemplateSyntaxError

from weir_tokenizer.sandbox import Budget, BudgetExceededError, TemplateEnvironment, spending

ENVIRONMENT = TemplateEnvironment(lambda: datetime(2026, 1, 2, tzinfo=UTC))


def ticking(step: float = 0.001) -> Callable[[], float]:
    """A clock that moves by `step` seconds each time that it is read."""
    readings: Iterator[float] = itertools.count(0.0, step)
    return lambda: next(readings)


def render(source: str, *, max_bytes: int = 10_000, timeout_s: float = 1.0, **variables: object) -> str:
    with spending(Budget.start(max_bytes, timeout_s, ticking())):
        return ENVIRONMENT.load(source, "t.jinja").render(variables)


ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loop without output": "{% set ns = namespace(x=0) %}{% for i in range(99999) %}{% set ns.x = i %}{% endfor %}",
    "recursive macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "recursive loop": "{% set x = [1, 2, 3] %}{% for i in x recursive %}{{ loop(x) }}{% endfor %}",
    "call blocks": (
        "{% macro g() %}{{ caller() }}{% endmacro %}"
        "{% macro f(n) %}{% if n %}{% call g() %}{{ f(n - 1) }}{{ f(n - 1) }}{% endcall %}{% endif %}{% endmacro %}"
        "{{ f(40) }}"
    ),
    "inside a generation block": "{% generation %}{% for i in range(99999) %}{% endfor %}{% endgeneration %}",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_never_ends_is_ended(case: str) -> None:
    with pytest.raises((BudgetExceededError, RecursionError)) as caught:
        render(ENDLESS[case])
    if "recursive loop" not in case:
        assert "longer than 1 s" in str(caught.value)


def growing(start: str, operator: str) -> str:
    turn = f"{{% set ns.s = ns.s {operator} ns.s %}}"
    return f"{{% set ns = namespace(s={start}) %}}{{% for i in range(90) %}}{turn}{{% endfor %}}"


HUGE = {
    "repeated text": "{{ 'x' * n }}",
    "repeated text, reversed": "{{ n * 'x' }}",
    "repeated list": "{{ [0] * n }}",
    "doubled by adding": growing("'xx'", "+"),
    "doubled by joining": growing("'xx'", "~"),
    "doubled list": growing("[1]", "+"),
    "joined inside a join": "{% set s = 'x' * 9000 %}{{ ((s ~ s) | length) ~ 'x' }}",
    "power": "{{ 9 ** n }}",
    "squared again and again": growing("n", "*"),
}


@pytest.mark.parametrize("case", HUGE)
def test_what_would_grow_huge_is_never_built(case: str) -> None:
    with pytest.raises(BudgetExceededError):
        render(HUGE[case], n=10**9, timeout_s=100)


def test_what_is_within_the_budget_is_untouched() -> None:
    assert render("{{ 'x' * 5000 }}") == "x" * 5000
    assert render("{{ 'x' * -1 }}{{ 3 * 4 }}{{ 2 ** -1 }}{{ 'a' + 'b' }}{{ 1 + 1.5 }}") == "120.5ab2.5"
    assert render("{% for i in range(100) %}{{ i }}{% endfor %}") == "".join(map(str, range(100)))


def test_a_template_cannot_replace_the_checks() -> None:
    source = "{% set _check_time = dict %}{% macro check_time() %}{% endmacro %}" + ENDLESS["loop without output"]
    with pytest.raises(BudgetExceededError):
        render(source, _check_time=1)


def test_renderings_in_one_thread_have_their_own_budgets() -> None:
    with spending(Budget.start(10, 1.0, ticking())):
        assert render("{{ 'x' * 100 }}") == "x" * 100
        with pytest.raises(BudgetExceededError):
            ENVIRONMENT.load("{{ 'x' * 100 }}", "t").render()


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{{ a", 1),
        ("ok\n{% if %}", 2),
        ("\n\n{% endfor %}", 3),
        ("{{ a | no_such_filter }}", 1),
        ("{% generation %}", 1),
    ],
)
def test_what_does_not_compile_names_its_line(source: str, line: int) -> None:
    with pytest.raises(TemplateSyntaxError) as caught:
        ENVIRONMENT.load(source, "dir/chat_template.jinja")
    assert caught.value.lineno == line


def test_time_is_the_clock_that_was_passed_in() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "02 Jan 2026"
