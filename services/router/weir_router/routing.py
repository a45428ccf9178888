"""Where requests go now: what is known of the fleet, given to the policy of the request's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from weir_chassis.clock import Clock
from weir_router.fleet.executor_link import ExecutorLink
from weir_router.fleet.fleet import Fleet
from weir_router.fleet.outstanding import Reservation
from weir_router.fleet.views import ExecutorView
from weir_router.models.aliases import Aliases
from weir_router.models.target import Target
from weir_router.policies.choose import Choice, choose, choose_prefill, rank
from weir_router.policies.make import make_policy
from weir_router.policies.policy import Demand, Policy, Scored
from weir_router.prefixes.prefixes import Prefixes
from weir_router.regions import Residency, residency
from weir_router.routing_config import RoutingConfig


class Routing:
    """`config` is in force until `apply` is given another."""

    def __init__(
        self, fleet: Fleet, config: RoutingConfig, prefixes: Prefixes, clock: Clock, first_turn: Callable[[], int]
    ):
        """`first_turn` is where the turns of a model begin: routers that start together need not go in step."""
        self.fleet, self.config = fleet, config
        self._prefixes, self._clock = prefixes, clock
        self.aliases = Aliases(config.aliases)
        fleet.externals.apply(config)
        self._first_turn = first_turn
        self._weighs_prefixes = _any_weighs_prefixes(config)
        # By model, as they are asked for: of what executors serve, so that there are no more models than of these.
        self._policies: dict[str, Policy] = {}
        self._turns: dict[str, int] = {}

    def apply(self, config: RoutingConfig) -> tuple[RoutingConfig, Sequence[str]]:
        """What is in force from now on, and why that is not all of it: of this, nothing."""
        self.config = config
        self.aliases.apply(config.aliases)
        self.fleet.externals.apply(config)
        self._policies.clear()
        self._weighs_prefixes = _any_weighs_prefixes(config)
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
        informed = self.informed(demand)
        return residency.find(lambda place: choose(snapshot.within(place), informed, policy))

    def rank(self, demand: Demand, residency: Residency) -> Sequence[Scored]:
        """All that may take it, best first. Raises as `policies.choose.rank` does."""
        snapshot, policy = self.fleet.snapshot(), self._policy(demand)
        informed = self.informed(demand)
        return residency.find(lambda place: rank(snapshot.within(place), informed, policy))

    def choose_prefill(
        self, choice: Choice, demand: Demand, able: Sequence[ExecutorView], assigned: str | None = None
    ) -> Choice:
        """The same with whoever of these is to compute the prompt: who has asked for it, if it is among them."""
        policy = self._policy(demand)
        return choose_prefill(choice, self.informed(demand), able, policy, assigned)

    def reserve(self, executor: ExecutorLink, tokens: int, prefill_tokens: int, block_hashes: bytes) -> Reservation:
        """Counts a request against its executor at once, before anybody else chooses; its prompt will be there too."""
        if self._weighs_prefixes:
            self._prefixes.note_routed(executor.address, block_hashes, self._clock.monotonic())
        return executor.outstanding.reserve(tokens, prefill_tokens)

    def weighs_prefixes(self) -> bool:
        """Whether some model's policy looks at what executors hold."""
        return self._weighs_prefixes

    def informed(self, demand: Demand) -> Demand:
        """The same with who holds how much of the prompt, where the model's policy weighs that."""
        if not self._policy(demand).weighs_prefixes or not demand.block_hashes:
            return demand
        now = self._clock.monotonic()
        return replace(demand, cached_tokens=self._prefixes.cached_tokens(demand.block_hashes, demand.block_size, now))

    def _policy(self, demand: Demand) -> Policy:
        model = demand.version.model
        if model not in self._policies:
            self._policies[model] = make_policy(self.config.of_model(model))
        return self._policies[model]


def _any_weighs_prefixes(config: RoutingConfig) -> bool:
    """For any model that may come to be served."""
    models = [config.defaults, *map(config.of_model, config.models)]
    return any(make_policy(model).weighs_prefixes for model in models)
