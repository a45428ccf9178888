"""How long it takes to ask the store, to load from each of its tiers, and to compute instead. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weir_executor.engine import EngineInfo, EngineLoad
from weir_executor.estimate import Average, Estimate
from weir_executor.kv_transfer.plan import TierRange

# Loads after which an old one counts for a third: enough to tell chance from change.
_MEMORY_LOADS = 8.0
# Before the first answer: a store in the same building, busy.
_FIRST_SECONDS = Estimate(0.005, 0.0025)
# Their names come from outside. A store has four tiers; more are taken for one.
_MAX_TIERS = 16


@dataclass(frozen=True, slots=True)
class Computing:
    """What it would take to do without the store."""

    block: Estimate | None  # seconds for one block; None: nothing was computed yet
    ahead: Estimate  # seconds until the prompts before it are computed

    def blocks(self, count: int) -> Estimate | None:
        return None if self.block is None else self.block * count


def computing(load: EngineLoad, info: EngineInfo) -> Computing:
    token = load.prefill_token_seconds
    if token is None:
        return Computing(None, Estimate(0.0))
    return Computing(token * info.block_size, token * load.outstanding_prefill_tokens)


class TierSpeed:
    """A tier's latency to the first bytes, and seconds per byte from there on."""

    def __init__(self, byte_seconds: Estimate) -> None:
        """`byte_seconds` before the first measurement."""
        self._first, self._byte = Average(_MEMORY_LOADS), Average(_MEMORY_LOADS)
        self._byte_prior = byte_seconds

    @property
    def measured(self) -> bool:
        return self._byte.estimate is not None

    @property
    def tried(self) -> bool:
        """Also when nothing came."""
        return self._first.estimate is not None

    @property
    def first(self) -> Estimate:
        """Seconds until the first bytes are on their way."""
        return self._first.estimate or _FIRST_SECONDS

    @property
    def byte(self) -> Estimate:
        """Seconds for each from then on."""
        return self._byte.estimate or self._byte_prior

    def seconds(self, size_bytes: int) -> Estimate:
        return self.first + self.byte * size_bytes

    def note(self, seconds: float, size_bytes: int, first_seconds: float, first_bytes: int) -> None:
        """All came in so long, and what came first of it in so long.

        What came at once tells only the sum of latency and transfer: it is split as the sum was predicted.
        """
        rest_bytes = size_bytes - first_bytes
        if rest_bytes:
            byte = (seconds - first_seconds) / rest_bytes
            first = max(0.0, first_seconds - byte * first_bytes)
        else:
            factor = seconds / self.seconds(size_bytes).mean
            first, byte = self.first.mean * factor, self.byte.mean * factor
        if not self.measured:
            self._first = Average(_MEMORY_LOADS)  # of what was given up it said only how long it had not come
        self._first.note(first)
        self._byte.note(byte)

    def note_nothing(self, seconds: float) -> None:
        """Nothing had come after so long, when it was given up: the truth is no better, which may be known already."""
        self._first.note(max(seconds, self.first.mean))


class LoadPredictor:
    """Of a store's answers and of its tiers' transfers."""

    def __init__(self, bytes_per_second: float) -> None:
        """`bytes_per_second` before the first measurement."""
        self._prior = Estimate(1 / bytes_per_second, 0.5 / bytes_per_second)
        self._match = Average(_MEMORY_LOADS)
        self._tiers: dict[str, TierSpeed] = {}

    @property
    def match(self) -> Estimate:
        """Seconds until the store has said what it holds."""
        return self._match.estimate or _FIRST_SECONDS

    def note_match(self, seconds: float) -> None:
        self._match.note(seconds)

    def tier(self, name: str) -> TierSpeed:
        if name not in self._tiers and len(self._tiers) >= _MAX_TIERS:
            name = ""
        return self._tiers.setdefault(name, TierSpeed(self._prior))

    def knows(self, ranges: Iterable[TierRange]) -> bool:
        """Whether something has come from each of their tiers."""
        return all(self.tier(each.tier).measured for each in ranges)

    def tried(self, ranges: Iterable[TierRange]) -> bool:
        """Whether something was to come from each of their tiers."""
        return all(self.tier(each.tier).tried for each in ranges)

    def note_load(
        self,
        ranges: Iterable[TierRange],
        block_bytes: int,
        *,
        began_at: float,
        marks: Sequence[tuple[int, float]],
        given_up_at: float | None = None,
    ) -> None:
        """`marks`: at each time something came, how many blocks there were then, of those that `ranges` promised.

        What was given up counts as if the last block had come then.
        """
        came, start, before, end = marks[-1][0] if marks else 0, began_at, 0, 0
        for each in ranges:
            end += each.blocks
            inside = [(count, at) for count, at in marks if before < count <= end]
            stalled_at = given_up_at if came < end else None
            if inside:
                (first, first_at), (last, last_at) = inside[0], inside[-1]
                last_at = stalled_at or last_at
                size, first_size = (last - before) * block_bytes, (first - before) * block_bytes
                self.tier(each.tier).note(last_at - start, size, first_at - start, first_size)
                start, before = last_at, last
            elif stalled_at is not None:
                self.tier(each.tier).note_nothing(stalled_at - start)
            if came < end:
                return  # of the others nothing came, because of this one

    def seconds(self, ranges: Iterable[TierRange], block_bytes: int) -> Estimate:
        """One range after the other, each with its tier's latency."""
        total = Estimate(0.0)
        for each in ranges:
            total += self.tier(each.tier).seconds(each.blocks * block_bytes)
        return total
