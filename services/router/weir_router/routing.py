"""Where requests go now: what is known of the fleet, given to the policy of the request's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weir_router.fleet.fleet import Fleet
from weir_router.fleet.snapshot import ExecutorView
from weir_router.models.aliases import Aliases
from weir_router.models.target import Target
from weir_router.policies.choose import Choice, choose, choose_prefill, rank_executors
from weir_router.policies.make import make_policy
from weir_router.policies.policy import Demand, Policy, Scored
from weir_router.regions import Residency, residency
from weir_router.routing_config import RoutingConfig


class Routing:
    """`config` is in force until `apply` is given another."""

    def __init__(self, fleet: Fleet, config: RoutingConfig, *, first_turn: Callable[[], int] = lambda: 0):
        """`first_turn` is where the turns of a model begin: routers that start together need not go in step."""
        self.fleet, self.config = fleet, config
        self.aliases = Aliases(config.aliases)
        self._first_turn = first_turn
        # By model, as they are asked for: of what executors serve, so that there are no more models than of these.
        self._policies: dict[str, Policy] = {}
        self._turns: dict[str, int] = {}

    def apply(self, config: RoutingConfig) -> tuple[RoutingConfig, Sequence[str]]:
        """What is in force from now on, and why that is not all of it: of this, nothing."""
        self.config = config
        self.aliases.apply(config.aliases)
        self._policies.clear()
        return config, ()

    def residency(self, tenant: str, wanted: Sequence[str] = ()) -> Residency:
        """Where a request of this tenant may go, which wants these regions. Raises PermissionDenied."""
        return residency(self.config.tenant_regions, tenant, frozenset(wanted))

    def quality(self, target: Target) -> float | None:
        """In [0, 1], as the operator rates it; None: nobody has."""
        return self.config.of_model(target.model).quality if target.quality is None else target.quality

    def next_turn(self, model: str) -> int:
        """A request's own number among those for its model: others' requests in between shift nobody's turns."""
        turn = self._turns.get(model)
        turn = self._first_turn() if turn is None else turn + 1
        self._turns[model] = turn
        return turn

    def choose(self, demand: Demand, residency: Residency) -> Choice:
        """Raises as `policies.choose.choose` does."""
        snapshot, policy = self.fleet.snapshot(), self._policy(demand)
        return residency.find(lambda place: choose(snapshot.within(place), demand, policy))

    def rank(self, demand: Demand, residency: Residency) -> Sequence[Scored]:
        """For calls that need no postprocessor. Raises as `policies.choose.rank_executors` does."""
        snapshot, policy = self.fleet.snapshot(), self._policy(demand)
        return residency.find(lambda place: rank_executors(snapshot.within(place), demand, policy))

    def choose_prefill(
        self, choice: Choice, demand: Demand, able: Sequence[ExecutorView], assigned: str | None = None
    ) -> Choice:
        """The same with whoever of these is to compute the prompt: who has asked for it, if it is among them."""
        return choose_prefill(choice, demand, able, self._policy(demand), assigned)

    def _policy(self, demand: Demand) -> Policy:
        model = demand.version.model
        if model not in self._policies:
            self._policies[model] = make_policy(self.config.of_model(model))
        return self._policies[model]
