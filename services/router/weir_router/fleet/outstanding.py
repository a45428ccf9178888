"""How many tokens one executor still owes, counted where they are routed.

outstanding = ours (exact, counted here) + others' (the newest report, less what was ours when it came)

Tokens of prompts that are not computed yet are a part of them, counted in the same way.
"""

from __future__ import annotations

from weir_router.fleet.changes import Changes


class Outstanding:
    """The count of one executor, by all requests of this router on it."""

    def __init__(self, changes: Changes | None = None) -> None:
        """`changes`: where it is noted that a count is another now."""
        self.changes = changes or Changes()
        self.routed_tokens = self.routed_prefill_tokens = 0
        self.routed_requests = 0
        self.foreign_tokens = self.foreign_prefill_tokens = 0

    def reserve(self, tokens: int, prefill_tokens: int = 0) -> Reservation:
        """`prefill_tokens`: those of its prompt that the executor is believed not to hold."""
        return Reservation(self, tokens, prefill_tokens)

    def report(self, outstanding_tokens: int, outstanding_prefill_tokens: int = 0) -> None:
        """What the executor itself says it owes to everybody."""
        self.foreign_tokens = max(0, outstanding_tokens - self.routed_tokens)
        self.foreign_prefill_tokens = max(0, outstanding_prefill_tokens - self.routed_prefill_tokens)
        self.changes.of_loads += 1

    def forget(self) -> None:
        """The executor is gone and with it what others had routed; our own requests end one by one."""
        self.foreign_tokens = self.foreign_prefill_tokens = 0
        self.changes.of_loads += 1


class Reservation:
    """One request's part of the count: taken when it is routed, spent as tokens come, given back at its end."""

    __slots__ = ("_lives", "_outstanding", "_prefill_tokens", "tokens")

    def __init__(self, outstanding: Outstanding, tokens: int, prefill_tokens: int = 0):
        assert tokens > 0, tokens
        assert 0 <= prefill_tokens <= tokens, (prefill_tokens, tokens)
        self._outstanding, self._lives = outstanding, True
        self.tokens, self._prefill_tokens = tokens, prefill_tokens
        outstanding.routed_tokens += tokens
        outstanding.routed_prefill_tokens += prefill_tokens
        outstanding.routed_requests += 1
        outstanding.changes.of_counts += 1

    def spend(self, tokens: int) -> None:
        """Tokens that are prefilled or have come. More than were reserved cannot be spent."""
        spent = min(tokens, self.tokens)
        self.tokens -= spent
        outstanding = self._outstanding
        outstanding.routed_tokens -= spent
        outstanding.changes.of_counts += 1

    def prefilled(self) -> None:
        """Its prompt is computed, as far as others have to wait for that."""
        self._outstanding.routed_prefill_tokens -= self._prefill_tokens
        self._outstanding.changes.of_counts += 1
        self._prefill_tokens = 0

    def release(self) -> None:
        self.spend(self.tokens)
        self.prefilled()
        if self._lives:
            self._lives = False
            self._outstanding.routed_requests -= 1
