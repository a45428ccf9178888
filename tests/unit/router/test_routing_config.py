from __future__ import annotations

import pytest

from weir_chassis.toml_config import ConfigError
from weir_router.routing_config import ModelRouting, RoutingConfig, parse


def test_a_model_has_the_defaults_where_it_says_nothing() -> None:
    config = parse('[defaults]\npolicy = "least_outstanding_tokens"\n[models.demo]')
    assert config.of_model("demo") == config.of_model("other") == ModelRouting(policy="least_outstanding_tokens")


def test_a_policys_own_table_says_only_what_differs() -> None:
    text = """
        [defaults.prefix_aware]
        explore = 0.1
        [models.demo]
        policy = "prefix_aware"
        [models.demo.prefix_aware]
        jitter = 0.2
    """
    found = parse(text).of_model("demo")
    assert (found.policy, found.prefix_aware.explore, found.prefix_aware.jitter) == ("prefix_aware", 0.1, 0.2)
    assert parse(text).of_model("other").prefix_aware.jitter == ModelRouting().prefix_aware.jitter
    with pytest.raises(ConfigError, match="explore"):
        parse("[defaults.prefix_aware]\nexplore = 2.0")


def test_no_file_is_a_whole_configuration() -> None:
    assert parse("") == RoutingConfig()


def test_an_unknown_policy_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="least_outstanding_tokens"):
        parse('[defaults]\npolicy = "fastest"')
