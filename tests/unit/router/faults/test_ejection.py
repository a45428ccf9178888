"""Some may be left out, and never all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weir_router.faults.ejection import ejected


@given(
    st.lists(st.sampled_from("abcdefghij"), unique=True),
    st.dictionaries(st.sampled_from("abcdefghij"), st.floats(0, 100)),
    st.floats(0, 0.99),
)
def test_never_more_than_the_share_and_never_all(pool: list[str], refusing: dict[str, float], share: float) -> None:
    out = ejected(pool, refusing, share)
    assert out <= set(pool) & set(refusing)
    assert len(out) <= share * len(pool)
    assert not pool or len(out) < len(pool)
    spared = (set(pool) & set(refusing)) - out
    assert len(out) == min(int(share * len(pool)), len(out) + len(spared)), "as many as may be"
    assert all(refusing[o] <= refusing[s] for o in out for s in spared), "those that have refused for longest"


def test_the_only_worker_is_never_left_out_and_one_of_two_is() -> None:
    assert ejected(["a"], {"a": 1.0}, 0.5) == frozenset()
    assert ejected(["a", "b"], {"a": 2.0, "b": 1.0}, 0.5) == {"b"}
    assert ejected(["a", "b"], {"c": 1.0}, 0.5) == frozenset()
