from __future__ import annotations

import pytest
from pydantic import Field

from weir_chassis.toml_config import ConfigError, Table, overlaid, parse_toml


class Part(Table):
    url: str = Field(default="", max_length=4)
    count: int = Field(default=1, ge=1)


class Whole(Table):
    name: str
    part: tuple[Part, ...] = ()


def test_a_file_becomes_an_object() -> None:
    found = parse_toml(Whole, 'name = "a"\n[[part]]\ncount = 3')
    assert found == Whole(name="a", part=(Part(count=3),))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name = ", "not TOML"),
        ("", "name: is missing"),
        ('name = "a"\nother = 1', "other: there is no such key here"),
        ('name = "a"\n[[part]]\ncount = 0', r"part\[0\].count=0: Input should be greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_toml(Whole, text)


def test_every_problem_is_told_and_no_secret() -> None:
    with pytest.raises(ConfigError) as told:
        parse_toml(Whole, '[[part]]\nurl = "redis://me:secret@host"')
    assert len(str(told.value).splitlines()) == 2
    assert "secret" not in str(told.value)


def test_an_error_may_have_words_of_its_own() -> None:
    with pytest.raises(ConfigError, match="name: give one"):
        parse_toml(Whole, "", messages={"missing": "give one"})


def test_what_one_says_is_laid_over_what_another_says() -> None:
    class Outer(Table):
        name: str = "none"
        inner: Part = Part()

    defaults = Outer(name="a", inner=Part(url="u", count=2))
    assert overlaid(defaults, Outer()) == defaults
    assert overlaid(defaults, Outer(inner=Part(count=3))) == Outer(name="a", inner=Part(url="u", count=3))
    assert overlaid(defaults, Outer(name="b")) == Outer(name="b", inner=Part(url="u", count=2))
