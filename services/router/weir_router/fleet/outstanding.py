"""How many tokens one executor still owes, counted where they are routed.

outstanding = ours (exact, counted here) + others' (the newest report, less what was ours when it came)
"""

from __future__ import annotations


class Outstanding:
    """The count of one executor, by all requests of this router on it."""

    def __init__(self) -> None:
        self.routed_tokens = 0
        self.foreign_tokens = 0
        # Monotonic seconds of the newest report.
        self.reported_at: float | None = None

    def reserve(self, tokens: int) -> Reservation:
        return Reservation(self, tokens)

    def report(self, outstanding_tokens: int, now: float) -> None:
        """What the executor itself says it owes to everybody."""
        self.foreign_tokens = max(0, outstanding_tokens - self.routed_tokens)
        self.reported_at = now

    def forget(self) -> None:
        """The executor is gone and with it what others had routed; our own requests end one by one."""
        self.foreign_tokens, self.reported_at = 0, None


class Reservation:
    """One request's part of the count: taken when it is routed, spent as tokens come, given back at its end."""

    __slots__ = ("_outstanding", "tokens")

    def __init__(self, outstanding: Outstanding, tokens: int):
        assert tokens > 0, tokens
        self._outstanding, self.tokens = outstanding, tokens
        outstanding.routed_tokens += tokens

    def spend(self, tokens: int) -> None:
        """Tokens that are prefilled or have come. More than were reserved cannot be spent."""
        spent = min(tokens, self.tokens)
        self.tokens -= spent
        self._outstanding.routed_tokens -= spent

    def release(self) -> None:
        self.spend(self.tokens)
