"""How requests are routed: one TOML file, checked, and followed while the router runs. Pure: it opens none.

[defaults]                        # of every model
policy = "least_outstanding_tokens"

[models."demo"]                   # what differs for this one
policy = "least_outstanding_tokens"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field

from weir_chassis.toml_config import Table, parse_toml
from weir_router.policies.make import PolicyName

# A table of the file each; what a mistaken file may make us check.
_MAX_MODELS: Final = 1000


class ModelRouting(Table):
    policy: PolicyName = Field(default="least_outstanding_tokens", description="by which an executor is chosen")


class RoutingConfig(Table):
    defaults: ModelRouting = ModelRouting()
    models: Mapping[str, ModelRouting] = Field(default_factory=dict, max_length=_MAX_MODELS)

    def of_model(self, model: str) -> ModelRouting:
        """The model's own table, and the defaults where it says nothing."""
        own = self.models.get(model)
        return self.defaults if own is None else self.defaults.model_copy(update=own.model_dump(exclude_unset=True))


def parse(text: str) -> RoutingConfig:
    """Raises ConfigError."""
    return parse_toml(RoutingConfig, text)
