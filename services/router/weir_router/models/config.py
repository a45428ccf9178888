"""What the routing file says of models: `[aliases.NAME]` and `[selection]`, checked. Pure.

[[aliases.chat.targets]]
model = "demo"
revision = "2026-10"              # empty: whichever the fleet agrees on
weight = 90
arm = "control"                   # the experiment's name for it; by itself `demo@2026-10`

[[aliases.chat.targets]]
model = "demo"
revision = "2026-11"
weight = 10
arm = "new"
canary = { steps = [0.01, 0.05, 0.25] }   # shares of the alias' traffic on its way to its weight

[aliases.chat.shadow]             # is asked some of the same afterwards, and its answers are dropped
model = "demo"
revision = "2026-12"
sample = 0.05
tokens_per_minute = 60000

[selection]                       # of requests that name no model, or "auto": models or aliases
default = "chat"
code = "coder"
long_context = "long"
long_context_tokens = 16384
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from weir_chassis.toml_config import Table
from weir_router.models.target import Target

# An experiment has a few arms; each is hashed for every request of the alias.
_MAX_TARGETS: Final = 16

# As a model's name in a request is bounded.
Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class CanaryTable(Table):
    """How a target is compared with the others of its alias. Rates are shares of requests."""

    steps: tuple[float, ...] = Field(default=(0.01, 0.05, 0.25, 0.5), max_length=16, description="shares of traffic")
    step_seconds: float = Field(default=300.0, gt=0.0, le=604_800.0, description="a step lasts so long at least")
    min_requests: int = Field(default=30, ge=5, le=1000, description="of each side, before anything is judged")
    window_seconds: float = Field(default=900.0, gt=0.0, le=86_400.0, description="what is older does not count")
    max_error_increase: float = Field(default=0.02, ge=0.0, le=1.0, description="over the baseline's error rate")
    max_refusal_increase: float = Field(default=0.05, ge=0.0, le=1.0, description="over the baseline's refusals")
    ttft_quantile: float = Field(default=0.9, ge=0.5, le=0.99, description="at which first tokens are compared")
    max_ttft_ratio: float = Field(default=1.5, ge=1.0, le=1000.0, description="to the baseline's TTFT")
    on_worse: Literal["rollback", "hold"] = Field(default="rollback", description="once that is certain")

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if not all(0 < step < 1 for step in self.steps) or any(a >= b for a, b in pairwise(self.steps)):
            raise ValueError("steps: each is in (0, 1) and more than the one before")
        return self


class TargetTable(Table):
    model: Name = Field(description="as executors serve it; not another alias")
    revision: str = Field(default="", max_length=128, description="empty: whichever the fleet agrees on")
    weight: float = Field(default=1.0, ge=0.0, le=1e9, description="its share among the alias' targets")
    arm: str = Field(default="", max_length=64, description="name in the experiment; empty: model@revision")
    quality: float | None = Field(default=None, ge=0.0, le=1.0, description="unset: as the model's own table rates it")
    canary: CanaryTable | None = Field(default=None, description="it gets its weight step by step, while it does well")

    @property
    def name(self) -> str:
        """Of the arm, which is what subjects are hashed by: another weight moves none but those that it must."""
        return self.arm or str(self.target(""))

    def target(self, alias: str) -> Target:
        return Target(self.model, self.revision, alias, self.arm, self.quality)


class ShadowTable(Table):
    """A target that is asked what others have answered, and whose answers nobody gets."""

    model: Name = Field(description="as executors serve it; not an alias")
    revision: str = Field(default="", max_length=128, description="empty: whichever the fleet agrees on")
    sample: float = Field(gt=0.0, le=1.0, description="share of the alias' requests")
    tokens_per_minute: int = Field(ge=1, le=10**9, description="prompts and answers together; beyond, none is asked")
    max_concurrent: int = Field(default=1, ge=1, le=1000, description="requests at once")
    deadline_seconds: float = Field(default=60.0, gt=0.0, le=3600.0, description="of one of them")

    @property
    def target(self) -> Target:
        return Target(self.model, self.revision)


class AliasTable(Table):
    targets: tuple[TargetTable, ...] = Field(min_length=1, max_length=_MAX_TARGETS)
    shadow: ShadowTable | None = Field(default=None, description="asked some of the same, for comparison")

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        names = [target.name for target in self.targets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two targets are called {twice[0]!r}; name their arms")
        if not any(target.weight for target in self.baseline):
            raise ValueError("no target but a canary has a weight")
        if len(self.targets) - len(self.baseline) > 1:
            raise ValueError("more than one target is a canary: it would not be known which of them did what")
        return self

    @property
    def baseline(self) -> tuple[TargetTable, ...]:
        """What a canary is compared with."""
        return tuple(target for target in self.targets if target.canary is None)

    @property
    def canary(self) -> TargetTable | None:
        return next((target for target in self.targets if target.canary is not None), None)


class SelectionTable(Table):
    """A kind without a name of its own is the default's."""

    default: Name = Field(description="for what is of no clear kind")
    simple: Name | None = Field(default=None, description="for short questions of fact and small chores")
    code: Name | None = Field(default=None, description="for programs and what is about them")
    complex: Name | None = Field(default=None, description="for analyses, proofs, plans")
    long_context: Name | None = Field(default=None, description="for prompts of `long_context_tokens`")
    long_context_tokens: int = Field(default=8192, ge=1, description="in the tokens of the model chosen first")
    min_confidence: float = Field(default=0.2, ge=0.0, le=1.0, description="below, it is of no clear kind")

    def rules(self) -> dict[str, str]:
        """Names by the rules that have one."""
        names = {
            "default": self.default,
            "simple": self.simple,
            "code": self.code,
            "complex": self.complex,
            "long_context": self.long_context,
        }
        return {rule: name for rule, name in names.items() if name is not None}
