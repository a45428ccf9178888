from __future__ import annotations

import pytest

from bench.workload import (
    WORKLOADS,
    Work,
    decode,
    first_token,
    mixed,
    prefill,
    shared_blocks,
    shared_prefix,
    shared_prefix_once,
    shared_prefix_uncached,
)


@pytest.mark.parametrize(
    ("work", "requests", "prompt_tokens", "output_tokens"),
    [
        (decode(0), 1, 128, 128),
        (mixed(0), 32, 8284, 4496),
        (prefill(0), 1, 2048, 1),
        (shared_prefix(0), 32, 33792, 1024),
    ],
)
def test_workloads_are_the_ones_that_every_measurement_here_was_made_with(
    work: Work, requests: int, prompt_tokens: int, output_tokens: int
) -> None:
    assert len(work.prompts) == len(work.lengths) == requests
    assert (work.prompt_tokens, work.output_tokens) == (prompt_tokens, output_tokens)


def test_prompts_that_share_a_prefix_share_no_block_beyond_it() -> None:
    work = shared_blocks(1)
    assert {len(prompt) for prompt in work.prompts} == {1024 + 15}
    assert len({tuple(prompt[:1024]) for prompt in work.prompts}) == 1
    assert shared_prefix_once(1).prompts[0][:1024] == work.prompts[0][:1024]


def test_mixed_requests_are_of_mixed_lengths() -> None:
    work = mixed(0)
    assert all(64 <= len(prompt) <= 512 for prompt in work.prompts)
    assert all(32 <= length <= 256 for length in work.lengths)
    assert len(set(map(len, work.prompts))) > 16
    assert len(set(work.lengths)) > 16


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_salt_changes_every_prompt_and_no_shape(name: str) -> None:
    first, second = WORKLOADS[name](1), WORKLOADS[name](2)
    assert list(map(len, first.prompts)) == list(map(len, second.prompts))
    assert first.lengths == second.lengths
    assert all(mine[:16] != other[:16] for mine, other in zip(first.prompts, second.prompts, strict=True))
    assert first == WORKLOADS[name](1)


@pytest.mark.parametrize("salt", [0, 3])
def test_the_shared_prefix_is_shared_whatever_the_salt(salt: int) -> None:
    work = shared_prefix(salt)
    assert len({tuple(prompt[:1024]) for prompt in work.prompts}) == 1
    assert len({tuple(prompt[1024:]) for prompt in work.prompts}) == 32


def test_the_prefix_is_made_warm_by_another_request_that_has_it() -> None:
    once, work = shared_prefix_once(5), shared_prefix(5)
    assert once.prompts[0][:1024] == work.prompts[0][:1024]
    assert once.prompts[0] not in work.prompts


def test_the_first_tokens_prompt_is_not_in_the_cache_of_decodes() -> None:
    assert first_token(0).prompts[0][:16] != decode(0).prompts[0][:16]
    assert len(first_token(0).prompts[0]) == len(decode(0).prompts[0])


def test_uncached_work_is_the_same_work() -> None:
    assert shared_prefix_uncached(1).prompts == shared_prefix(1).prompts
    assert shared_prefix(1).cached
    assert not shared_prefix_uncached(1).cached
