"""How requests are routed: one TOML file, checked, and followed while the router runs. Pure: it opens none.

[defaults]                        # of every model
policy = "least_outstanding_tokens"
continuation = "exact"            # of a stream whose worker is lost: or "best_effort", "none"

[models."demo"]                   # what differs for this one
policy = "prefix_aware"

[models."demo".prefix_aware]      # what that policy may be told
explore = 0.02

[tenants."acme"]                  # "*": those that are not named; without an entry, anywhere
regions = ["eu-west", "eu-north"] # a worker whose region nobody has said is in none
fallback_regions = ["uk"]         # only while nobody in `regions` can take the request

[aliases.chat]                    # models/config.py, as is [selection]

[[providers]]                     # and [[routers]]: providers/config.py
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from weir_chassis.toml_config import Table, overlaid, parse_toml
from weir_router.continuation import Mode
from weir_router.models.config import AliasTable, Name, SelectionTable, ShadowTable
from weir_router.policies.make import PolicyOptions
from weir_router.providers.config import ExternalTables
from weir_router.regions import TenantRegions

# A table of the file each; what a mistaken file may make us check.
_MAX_MODELS: Final = 1000
_MAX_ALIASES: Final = 1000
_MAX_TENANTS: Final = 10_000
_MAX_REGIONS: Final = 16

RegionName = Annotated[str, Field(min_length=1, max_length=64)]


class ModelRouting(PolicyOptions):
    """All that may differ from model to model."""

    quality: float | None = Field(default=None, ge=0.0, le=1.0, description="what requests may want a least of")
    hedge_after_seconds: float | None = Field(
        default=None,
        ge=0.0,
        le=600.0,
        description="another executor is asked too when the first has not begun to answer by then; unset: never",
    )
    continuation: Mode = Field(default=Mode.EXACT, description="of a stream whose worker is lost, stalls or drains")


class TenantRules(Table):
    regions: frozenset[RegionName] | None = Field(
        default=None, min_length=1, max_length=_MAX_REGIONS, description="where its requests may go; unset: anywhere"
    )
    fallback_regions: frozenset[RegionName] = Field(
        default=frozenset(), max_length=_MAX_REGIONS, description="and while nobody there can take them"
    )

    @model_validator(mode="after")
    def _check_fallback(self) -> Self:
        if self.regions is None and self.fallback_regions:
            raise ValueError("fallback_regions mean nothing where regions do not say what they are a fallback for")
        return self


class RoutingConfig(ExternalTables):
    defaults: ModelRouting = ModelRouting()
    models: Mapping[str, ModelRouting] = Field(default_factory=dict, max_length=_MAX_MODELS)
    aliases: Mapping[Name, AliasTable] = Field(default_factory=dict, max_length=_MAX_ALIASES)
    selection: SelectionTable | None = Field(default=None, description="unset: a request names its model")
    tenants: Mapping[str, TenantRules] = Field(default_factory=dict, max_length=_MAX_TENANTS)

    @cached_property
    def tenant_regions(self) -> Mapping[str, TenantRegions]:
        return {name: TenantRegions(rules.regions, rules.fallback_regions) for name, rules in self.tenants.items()}

    @cached_property
    def shadows(self) -> Mapping[str, ShadowTable]:
        """By alias."""
        return {name: alias.shadow for name, alias in self.aliases.items() if alias.shadow is not None}

    def of_model(self, model: str) -> ModelRouting:
        """The model's own table, and the defaults where it says nothing."""
        own = self.models.get(model)
        return self.defaults if own is None else overlaid(self.defaults, own)


def parse(text: str) -> RoutingConfig:
    """Raises ConfigError."""
    return parse_toml(RoutingConfig, text)
