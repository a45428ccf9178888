from __future__ import annotations

import pytest

from weir_chassis.toml_config import ConfigError
from weir_router.routing_config import ModelRouting, RoutingConfig, parse


def test_a_model_has_the_defaults_where_it_says_nothing() -> None:
    config = parse('[defaults]\npolicy = "least_outstanding_tokens"\n[models.demo]')
    assert config.of_model("demo") == config.of_model("other") == ModelRouting(policy="least_outstanding_tokens")


def test_no_file_is_a_whole_configuration() -> None:
    assert parse("") == RoutingConfig()


def test_an_unknown_policy_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="least_outstanding_tokens"):
        parse('[defaults]\npolicy = "fastest"')
