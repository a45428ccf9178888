"""The Jinja environment in which chat templates run: transformers' own, with a budget.

Templates are downloaded with models, so they are untrusted code. Three things keep one from hurting the process:

    immutable sandbox   no underscore attributes, no mutation of what it is given, no files, no imports
    budget              every loop turn and macro call looks at the clock; every operator that could build
                        something huge is measured before it is done
    generate()          the caller adds up the bytes as they come (chat_template.py)

The names that templates see (`raise_exception`, `strftime_now`, `tojson`, `dict`, `namespace`, `{% generation %}`,
`{% break %}`) and their behaviour equal those of transformers 5.23, which the tests use as the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls  # noqa: N812  # a class with a lower-case alias
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# An integer of this many bits prints as about 1200 digits: more than any template needs, and computed in no time.
_MAX_POWER_BITS = 4096


class BudgetExceededError(Exception):
    """The template took too long or built too much. The message says which, with the limit."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one rendering may cost: bytes of UTF-8 (of the result, and of any string on the way) and time."""

    max_bytes: int
    timeout_s: float
    monotonic: Callable[[], float]
    deadline: float

    @classmethod
    def start(cls, max_bytes: int, timeout_s: float, monotonic: Callable[[], float]) -> Budget:
        return cls(max_bytes, timeout_s, monotonic, monotonic() + timeout_s)

    def check_time(self) -> None:
        if self.monotonic() > self.deadline:
            raise BudgetExceededError(f"the template ran longer than {self.timeout_s:g} s")

    def check_bytes(self, size: int) -> None:
        if size > self.max_bytes:
            raise BudgetExceededError(f"the template built more than {self.max_bytes} bytes")


# Which budget the rendering in this thread draws on. A context variable, because Jinja hands nothing of ours to
# `call_binop` and extensions, and because a value in the template's own context could be overwritten by the template.
_current: ContextVar[Budget] = ContextVar("weir_tokenizer_render_budget")


@contextmanager
def spending(budget: Budget) -> Iterator[None]:
    """Templates rendered inside, in this thread, draw on `budget`."""
    token = _current.set(budget)
    try:
        yield
    finally:
        _current.reset(token)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. One per process is enough; it holds no state of a rendering."""

    intercepted_binops = frozenset(["+", "*", "**"])

    def __init__(self, now: Callable[[], datetime]):
        extensions = [_GenerationBlock, _BudgetCheck, LoopControls]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: now().strftime(format)  # noqa: A006  # templates name it so
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace

    def load(self, source: str, filename: str) -> Template:
        """`source`, compiled with the budget's checks in it. Raises `TemplateSyntaxError` naming the line."""
        tree = _AddChecks(self.extensions[_BudgetCheck.identifier]).visit(self.parse(source, filename=filename))
        return Template.from_code(self, self.compile(tree, filename=filename), self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _current.get().check_bytes(_result_size(operator, left, right))
        return super().call_binop(context, operator, left, right)


class _BudgetCheck(Extension):
    """Adds no tag: only the methods that `_AddChecks` puts into a template, where it cannot name or replace them."""

    def _check_time(self) -> None:
        _current.get().check_time()

    def _join(self, *values: Any) -> str:
        texts = [str(value) for value in values]
        _current.get().check_bytes(sum(map(len, texts)))
        return "".join(texts)


class _AddChecks(NodeTransformer):
    """Every loop turn and every macro call begins with `_check_time()`; `a ~ b` becomes `_join(a, b)`."""

    def __init__(self, checks: Extension):
        self._checks = checks

    def _timed(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        check = nodes.ExprStmt(self._checks.call_method("_check_time"))
        node.body.insert(0, check.set_lineno(node.lineno))
        return self.generic_visit(node)

    visit_For = visit_Macro = visit_CallBlock = _timed  # noqa: N815  # the visitor finds them by their nodes' names

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._checks.call_method("_join", list(node.nodes)).set_lineno(node.lineno)


class _GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks what the assistant said, for training; it renders as its body.

    As in transformers the body is a call block, so that what is set inside is not seen outside.
    """

    tags = {"generation"}  # noqa: RUF012  # Jinja's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render_body"), [], [], body).set_lineno(lineno)

    def _render_body(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)`, without the attributes of the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """Jinja's namespace, refusing names that lead to Python's insides."""

    # `self` is taken from `args`, as Jinja's own class does, so that `namespace(self=…)` stays possible.
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot store {name!r}: names must not begin with an underscore")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it: Jinja's own filter would escape for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _result_size(operator: str, left: Any, right: Any) -> int:
    """About how many items `left operator right` would have; 0 for what is small whatever it is."""
    if operator == "+" and _is_sized(left) and _is_sized(right):
        return len(left) + len(right)
    if operator == "*" and _is_sized(left) and isinstance(right, int):
        return len(left) * max(right, 0)
    if operator == "*" and _is_sized(right) and isinstance(left, int):
        return len(right) * max(left, 0)
    if operator == "*" and isinstance(left, int) and isinstance(right, int):
        return (left.bit_length() + right.bit_length()) // 8
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_power(left, right)
    return 0


def _is_sized(value: object) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _check_power(base: int, exponent: int) -> None:
    if base.bit_length() * max(exponent, 0) > _MAX_POWER_BITS:
        raise BudgetExceededError(f"the template computes a power of more than {_MAX_POWER_BITS} bits")
