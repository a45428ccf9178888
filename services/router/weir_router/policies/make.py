"""Policies by the names that the configuration has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal

from weir_router.policies.least_outstanding import LeastOutstandingTokens
from weir_router.policies.policy import Policy

PolicyName = Literal["least_outstanding_tokens"]

POLICIES: Final[Mapping[PolicyName, Callable[[], Policy]]] = {"least_outstanding_tokens": LeastOutstandingTokens}
