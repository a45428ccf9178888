from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.executor.test_mapping import INFO, never
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir.inference.v1.speculation_pb2 import SPECULATION_MODE_DRAFT_MODEL, SPECULATION_MODE_NGRAM, Speculation
from weir_chassis.errors import InvalidArgument, Unsupported
from weir_executor.request import Sampling, SpeculationMode
from weir_executor.sampling_mapping import (
    MAX_LOGIT_BIAS,
    check_sampling_value,
    to_max_draft_tokens,
    to_n,
    to_sampling,
    to_speculation_mode,
)

DEFAULT = Sampling()
SPECULATES = replace(INFO, speculation_modes=(SpeculationMode.NGRAM,), max_draft_tokens=4)


def mapped(asked: SamplingParameters, default: Sampling = DEFAULT) -> Sampling:
    return to_sampling(asked, default, INFO, None, never)


@given(value=st.floats(width=32), name=st.sampled_from(["temperature", "top_p", "min_p", "repetition_penalty"]))
def test_a_number_is_taken_as_it_is_or_refused(value: float, name: str) -> None:
    low_is_open = name in ("top_p", "repetition_penalty")
    high = 1 if name in ("top_p", "min_p") else 100
    good = not math.isnan(value) and value <= high and (value > 0 if low_is_open else value >= 0)
    asked = SamplingParameters(seed=1, **{name: value})  # type: ignore[arg-type]
    if good:
        assert getattr(mapped(asked), name) == value
    else:
        with pytest.raises(InvalidArgument, match=f"sampling.{name}: "):
            mapped(asked)


def test_unset_is_the_default_and_zero_is_set() -> None:
    default = Sampling(temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, repetition_penalty=2.0)
    assert mapped(SamplingParameters(seed=1), default) == replace(default, seed=1)
    zero = mapped(SamplingParameters(seed=1, temperature=0, top_k=0, min_p=0), default)
    assert (zero.temperature, zero.top_k, zero.min_p, zero.top_p) == (0, 0, 0, 0.25)


def test_a_seed_is_drawn_only_where_none_is_named() -> None:
    assert to_sampling(SamplingParameters(), Sampling(), INFO, None, lambda: 77).seed == 77
    assert mapped(SamplingParameters(seed=0)).seed == 0


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (SamplingParameters(seed=1, logit_bias={100: 1.0}), "sampling.logit_bias"),
        (SamplingParameters(seed=1, logit_bias={1: 101.0}), r"sampling.logit_bias\[1\]"),
        (SamplingParameters(seed=1, logit_bias=dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 0.0)), "sampling.logit_bias"),
        (SamplingParameters(seed=1, logprobs=6), "sampling.logprobs"),
    ],
)
def test_what_is_refused_is_named(asked: SamplingParameters, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        mapped(asked)


def test_biases_and_logprobs_arrive() -> None:
    told = mapped(SamplingParameters(seed=1, logit_bias={3: -1.5}, logprobs=0))
    assert (told.logit_bias, told.top_logprobs) == ({3: -1.5}, 0)
    assert mapped(SamplingParameters(seed=1)).top_logprobs is None


@pytest.mark.parametrize(("asked", "n"), [(SamplingParameters(), 1), (SamplingParameters(n=4), 4)])
def test_outputs(asked: SamplingParameters, n: int) -> None:
    assert to_n(asked, INFO) == n


@pytest.mark.parametrize("n", [0, 5])
def test_outputs_beyond_the_engines_limit(n: int) -> None:
    with pytest.raises(InvalidArgument, match=r"sampling.n: .* \[1, 4\]"):
        to_n(SamplingParameters(n=n), INFO)


def test_speculation() -> None:
    asked = SamplingParameters(speculation=Speculation(mode=SPECULATION_MODE_NGRAM, max_draft_tokens=4))
    assert to_speculation_mode(asked, SPECULATES) is SpeculationMode.NGRAM
    assert to_max_draft_tokens(asked, SPECULATES) == 4
    assert to_speculation_mode(SamplingParameters(), SPECULATES) is None
    assert to_max_draft_tokens(SamplingParameters(), SPECULATES) is None
    with pytest.raises(Unsupported, match="draft"):
        to_speculation_mode(SamplingParameters(speculation=Speculation(mode=SPECULATION_MODE_DRAFT_MODEL)), SPECULATES)
    with pytest.raises(InvalidArgument, match=r"sampling\.speculation\.max_draft_tokens"):
        to_max_draft_tokens(SamplingParameters(speculation=Speculation(max_draft_tokens=5)), SPECULATES)


def test_a_value_may_be_checked_by_itself() -> None:
    check_sampling_value("top_p", 1.0)
    with pytest.raises(InvalidArgument, match=r"^here: "):
        check_sampling_value("top_p", 0.0, "here")
