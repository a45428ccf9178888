"""What was said and what was just routed, together."""

from __future__ import annotations

from weir.kvstore.v1.block_hash import join_hashes
from weir_chassis.kv_events import blocks
from weir_chassis.kv_events.wire import Source
from weir_router.prefixes.index import PrefixIndex
from weir_router.prefixes.prefixes import Prefixes
from weir_router.prefixes.routed import RoutedPrefixes

HASHES = [number.to_bytes(16, "little") for number in range(8)]
PROMPT = join_hashes(HASHES)
A = Source("executor", "a")


def test_the_larger_of_the_two_counts_and_who_has_said_nothing_is_not_named() -> None:
    prefixes = Prefixes(PrefixIndex(100), RoutedPrefixes())
    assert prefixes.cached_tokens(PROMPT, 16, 0.0) == {}
    prefixes.reset(A)
    prefixes.apply(A, list(blocks.stored(HASHES[:3], b"", tier="device")))
    assert prefixes.cached_tokens(PROMPT, 16, 0.0) == {"a": 48}
    prefixes.note_routed("a", PROMPT[: 5 * 16], 0.0)
    prefixes.note_routed("b", PROMPT[: 2 * 16], 0.0)
    assert prefixes.cached_tokens(PROMPT, 16, 1.0) == {"a": 80, "b": 32}
    assert prefixes.cached_tokens(PROMPT, 16, 99.0) == {"a": 48}
    prefixes.lost(A)
    assert prefixes.cached_tokens(PROMPT, 16, 1.0) == {"b": 32}
