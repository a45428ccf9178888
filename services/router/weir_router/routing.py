"""Where requests go now: what is known of the fleet, given to the policy of the request's model."""

from __future__ import annotations

from collections.abc import Sequence

from weir_router.fleet.fleet import Fleet
from weir_router.models.aliases import Aliases
from weir_router.policies.choose import Choice, choose, rank_executors
from weir_router.policies.make import POLICIES
from weir_router.policies.policy import Demand, Policy, Scored
from weir_router.regions import Residency, residency
from weir_router.routing_config import RoutingConfig


class Routing:
    """`config` is in force until `apply` is given another."""

    def __init__(self, fleet: Fleet, config: RoutingConfig):
        self.fleet, self.config = fleet, config
        self.aliases = Aliases(config.aliases)
        self._policies: dict[str, Policy] = {}  # by model, as they are asked for

    def apply(self, config: RoutingConfig) -> tuple[RoutingConfig, Sequence[str]]:
        """What is in force from now on, and why that is not all of it: of this, nothing."""
        self.config = config
        self.aliases.apply(config.aliases)
        self._policies.clear()
        return config, ()

    def residency(self, tenant: str, wanted: Sequence[str] = ()) -> Residency:
        """Where a request of this tenant may go, which wants these regions. Raises PermissionDenied."""
        return residency(self.config.tenant_regions, tenant, frozenset(wanted))

    def choose(self, demand: Demand, residency: Residency) -> Choice:
        """Raises as `policies.choose.choose` does."""
        snapshot, policy = self.fleet.snapshot(), self._policy(demand.version.model)
        return residency.find(lambda place: choose(snapshot.within(place), demand, policy))

    def rank(self, demand: Demand, residency: Residency) -> Sequence[Scored]:
        """For calls that need no postprocessor. Raises as `policies.choose.rank_executors` does."""
        snapshot, policy = self.fleet.snapshot(), self._policy(demand.version.model)
        return residency.find(lambda place: rank_executors(snapshot.within(place), demand, policy))

    def _policy(self, model: str) -> Policy:
        # Models are those that executors serve, so there are no more of them than of these.
        if model not in self._policies:
            self._policies[model] = POLICIES[self.config.of_model(model).policy]()
        return self._policies[model]
