from __future__ import annotations

from array import array
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_tokenizer.encoding_cache import ENTRY_OVERHEAD_BYTES, CacheEvent, EncodingCache, cache_key


def ids(*values: int) -> array[int]:
    return array("I", values)


Source = tuple[str, str, bool]
sources = st.tuples(st.text(max_size=2), st.text(max_size=2), st.booleans())
ONE_ENTRY = ENTRY_OVERHEAD_BYTES + 4


def test_what_is_put_is_found_and_counted() -> None:
    events: Counter[CacheEvent] = Counter()
    cache = EncodingCache(10_000, lambda event: events.update([event]))
    assert cache.get(b"a") is None
    cache.put(b"a", ids(1, 2, 2**32 - 1))
    assert cache.get(b"a") == ids(1, 2, 2**32 - 1)
    assert events == {CacheEvent.MISS: 1, CacheEvent.HIT: 1}


def test_a_found_list_is_the_callers_own() -> None:
    cache = EncodingCache(10_000)
    cache.put(b"a", ids(1))
    found = cache.get(b"a")
    assert found is not None
    found[0] = 9
    assert cache.get(b"a") == ids(1)


def test_the_least_recently_used_goes_first() -> None:
    events: Counter[CacheEvent] = Counter()
    cache = EncodingCache(2 * ONE_ENTRY, lambda event: events.update([event]))
    cache.put(b"a", ids(1))
    cache.put(b"b", ids(2))
    cache.get(b"a")
    cache.put(b"c", ids(3))
    assert cache.get(b"b") is None
    assert cache.get(b"a") == ids(1)
    assert events[CacheEvent.EVICTED] == 1
    assert len(cache) == 2


@pytest.mark.parametrize("max_bytes", [0, ONE_ENTRY - 1])
def test_what_does_not_fit_is_not_kept(max_bytes: int) -> None:
    cache = EncodingCache(max_bytes)
    cache.put(b"a", ids(1))
    assert cache.get(b"a") is None
    assert cache.size_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=60))
def test_the_bytes_are_always_those_of_the_entries(puts: list[tuple[int, int]]) -> None:
    cache = EncodingCache(4 * ONE_ENTRY)
    for key, length in puts:
        cache.put(bytes([key]), ids(*range(length)))
        cache.check_integrity()


@given(sources, sources)
def test_a_key_names_model_text_and_flag(one: Source, other: Source) -> None:
    keys = [cache_key(model, text, add_special_tokens=special) for model, text, special in (one, other)]
    assert (keys[0] == keys[1]) is (one == other)


def test_moving_a_character_between_model_and_text_changes_the_key() -> None:
    assert cache_key("ab", "c", add_special_tokens=True) != cache_key("a", "bc", add_special_tokens=True)


def test_threads_may_share_it() -> None:
    cache = EncodingCache(20 * ONE_ENTRY)

    def work(seed: int) -> None:
        for i in range(300):
            value = (i * 7 + seed) % 40
            found = cache.get(bytes([value]))
            assert found is None or found == ids(value)
            cache.put(bytes([value]), ids(value))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    cache.check_integrity()
