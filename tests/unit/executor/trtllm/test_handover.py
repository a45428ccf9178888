"""What one engine says of a computed prompt is what the other hears, and nothing else is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.trtllm.params import DisaggregatedParams
from fakes.trtllm.results import Logprob
from weir_executor.trtllm.handover import FIELDS, format_of, pack, unpack

NAMES = frozenset(DisaggregatedParams.__dataclass_fields__)
IDS = st.integers(0, 2**63)
PARAMS = st.builds(
    DisaggregatedParams,
    request_type=st.just("context_only"),
    first_gen_tokens=st.none() | st.lists(st.integers(0, 200_000), max_size=3),
    first_gen_log_probs=st.none()
    | st.lists(
        st.dictionaries(st.integers(0, 200_000), st.builds(Logprob, st.floats(-99, 0), st.none() | st.integers(1, 20))),
        max_size=2,
    ),
    ctx_request_id=st.none() | IDS,
    opaque_state=st.none() | st.binary(max_size=200),
    draft_tokens=st.none() | st.lists(st.integers(0, 200_000), max_size=5),
)


@given(st.dictionaries(st.integers(0, 15), PARAMS, max_size=4))
def test_all_that_is_said_is_heard(outputs: dict[int, DisaggregatedParams]) -> None:
    heard = unpack(pack(outputs), NAMES, Logprob)
    assert heard.keys() == outputs.keys()
    for index, said in outputs.items():
        again = DisaggregatedParams(request_type="context_only", **heard[index])
        assert again == said


def test_what_a_version_has_not_is_left_out() -> None:
    class Newer:
        first_gen_tokens = (5,)
        opaque_state = b"x"
        disagg_request_id = 77
        ctx_info_endpoint = "tcp://a:1"

    assert unpack(pack({0: Newer()}), NAMES, Logprob)[0].keys() == {"first_gen_tokens", "opaque_state"}
    assert unpack(pack({0: Newer()}), FIELDS, Logprob)[0]["disagg_request_id"] == 77


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        b'{"0": 1}',
        b'{"zero": {}}',
        b'{"0": {"opaque_state": "no base64"}}',
        b'{"0": {"opaque_state": 5}}',
        b'{"0": {"first_gen_log_probs": [[[1]]]}}',
        b'{"0": {"first_gen_log_probs": 3}}',
    ],
)
def test_what_is_not_ours_is_refused(wrong: bytes) -> None:
    with pytest.raises((TypeError, ValueError)):
        unpack(wrong, NAMES, Logprob)


def test_a_kind_of_output_that_nobody_has_seen_is_no_state() -> None:
    strange: Any = DisaggregatedParams(ctx_request_id=object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pack({0: strange})


def test_releases_understand_one_another_within_a_minor_one() -> None:
    assert format_of("1.3.0rc29") == format_of("1.3.1") == "trtllm/1/1.3"
    assert format_of("1.2.1") != format_of("1.3.1")


def test_it_is_json_that_a_person_can_read() -> None:
    told = json.loads(pack({0: DisaggregatedParams(first_gen_tokens=[7], opaque_state=b"abc")}))
    assert told == {"0": {"first_gen_tokens": [7], "opaque_state": "YWJj"}}
