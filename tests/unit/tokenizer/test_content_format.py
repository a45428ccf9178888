from __future__ import annotations

from datetime import UTC, datetime

import pytest

from unit.tokenizer.model_directories import FIXTURES, fixture_template
from weir_tokenizer.content_format import ContentFormat, content_format
from weir_tokenizer.sandbox import TemplateEnvironment

ENVIRONMENT = TemplateEnvironment(lambda: datetime(2026, 1, 2, tzinfo=UTC))


def format_of(source: str) -> ContentFormat:
    return content_format(ENVIRONMENT.parse(source))


LOOP = "{% for m in messages %}{% for part in CONTENT %}{{ part.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "content", ["m.content", "m['content']", "m['content'] | list", "m.content[1:]", "messages[0]['content']"]
)
def test_a_template_that_walks_the_content_gets_parts(content: str) -> None:
    assert format_of(LOOP.replace("CONTENT", content)) is ContentFormat.PARTS


def test_walking_a_variable_that_holds_the_content_is_walking_it() -> None:
    source = (
        "{% for m in messages %}{% set c = m['content'] %}{% for part in c %}{{ part.text }}{% endfor %}{% endfor %}"
    )
    assert format_of(source) is ContentFormat.PARTS


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for t in tools %}{{ t }}{% endfor %}{{ messages[0].content }}",
        "{% if m.content is string %}{{ m.content }}{% else %}" + LOOP.replace("CONTENT", "m.content") + "{% endif %}",
        "{% set c = m.content %}{% if c is string %}{{ c }}{% else %}" + LOOP.replace("CONTENT", "c") + "{% endif %}",
        "{% for x in (content or []) %}{% endfor %}",
    ],
)
def test_all_others_get_a_string(source: str) -> None:
    assert format_of(source) is ContentFormat.STRING


def test_asking_whether_something_else_is_a_string_does_not_count() -> None:
    source = "{% if arguments is string %}x{% endif %}" + LOOP.replace("CONTENT", "m.content")
    assert format_of(source) is ContentFormat.PARTS


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.jinja")), ids=lambda path: path.stem)
def test_of_the_families(path) -> None:  # type: ignore[no-untyped-def]
    expected = ContentFormat.PARTS if path.stem == "vision_parts" else ContentFormat.STRING
    assert format_of(fixture_template(path.stem)) is expected
