from __future__ import annotations

import re

import pytest

from weir_chassis.toml_config import ConfigError
from weir_router.fleet.views import Price
from weir_router.providers import config
from weir_router.routing_config import parse

PROVIDER = """[[providers]]
name = "p"
base_url = "https://api.example.com/v1/"
models = { demo = "theirs" }
capabilities = ["chat"]
"""


def test_the_documented_example_is_valid() -> None:
    doc = config.__doc__ or ""
    tables = parse(doc[doc.index("\n[[providers]]") :])
    (provider,), (router,) = tables.providers, tables.routers
    assert provider.base_url == "https://api.example.com/v1"
    assert provider.price is not None
    assert provider.price.price() == Price(500_000, 250_000, 1_500_000, "EUR")
    assert (provider.overflow, router.overflow) == (8192, 32_768)
    assert router.address.endswith(":7700")


def test_cached_tokens_cost_what_others_do_unless_told() -> None:
    price = parse(PROVIDER + "price = { prompt_micros = 3, completion_micros = 4 }\n").providers[0].price
    assert price is not None
    assert price.price() == Price(3, 3, 4, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"chat"', '"n"'), "neither chat nor completions"),
        (('"chat"', '"flying"'), "providers[0].capabilities"),
        (("https://", "ftp://"), "no http:// or https:// address"),
        (("https://", "https://user:pass@"), "api_key_file"),
        (("/v1/", "/v1?key=x"), "api_key_file"),
        (('{ demo = "theirs" }', "{}"), "providers[0].models"),
        (('"p"', '"a b"'), "providers[0].name"),
        (('capabilities = ["chat"]', 'capabilities = ["chat"]\nheaders = { Authorization = "x" }'), "api_key_file"),
        (('capabilities = ["chat"]', 'capabilities = ["chat"]\n' + PROVIDER), "given twice"),
    ],
)
def test_what_is_wrong_is_named(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(PROVIDER.replace(*change))
