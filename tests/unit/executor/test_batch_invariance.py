"""A request's greedy tokens in float32 do not depend on its neighbours: they change when it runs, not what it says."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest

from contract.engine_contract import Listener, hashes, prompt, request
from models_fixture import VOCAB_SIZE, tiny_model
from weir_executor.engine import Engine
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import Sampling

_KEY, _TOKENS = 0, 40


def _engine(family: str, kernels: str, **limits: Any) -> Engine:
    limits = {"num_threads": 1, "check_integrity": True, "kernels": kernels, **limits}
    return load_engine(PagedEngineConfig(tiny_model(family), **limits))


def _alone(family: str, kernels: str, token_ids: list[int]) -> list[int]:
    engine, heard = _engine(family, kernels, num_blocks=64), Listener()
    engine.start(heard)
    engine.submit(request(_KEY, token_ids, _TOKENS))
    heard.wait_for_ends(_KEY)
    engine.close()
    return heard.tokens[_KEY, 0]


# What computes: PyTorch, and the native kernels where a compiler has made them.
@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen3"])
def test_greedy_tokens_do_not_depend_on_neighbours_chunks_or_preemptions(family: str, kernels: str) -> None:
    """Neighbours come and go at random: anywhere in the batch, with the same prefix, cancelled, drawn, longer."""
    dice = random.Random(f"{family} 11")
    token_ids = prompt(61, vocab_size=VOCAB_SIZE)
    wanted, preemptions = _alone(family, kernels, token_ids), 0
    for _ in range(5):
        seqs = dice.randint(3, 8)
        engine = _engine(
            family,
            kernels,
            num_blocks=dice.randint(14, 20),
            max_num_seqs=seqs,
            max_batched_tokens=dice.randint(seqs, 70),
        )
        heard = Listener()
        engine.start(heard)
        engine.submit(request(_KEY, token_ids, _TOKENS, block_hashes=hashes(token_ids, 16), priority=-1))
        heard.wait_for(partial(heard.tokens.get, (_KEY, 0)), "its first token")
        keys = _surround(engine, dice, token_ids)
        for key in dice.sample(keys, 3):
            engine.abort(key, dice.choice((None, 0)))
        heard.wait_for_ends(_KEY, *keys)
        assert heard.tokens[_KEY, 0] == wanted
        preemptions += heard.ends[_KEY].preemptions
        engine.close()
    assert preemptions > 0, "the request itself was preempted at least once"


def _surround(engine: Engine, dice: random.Random, token_ids: list[int]) -> list[int]:
    """A dozen others, all of which go first. Returns their keys."""
    keys = list(range(1, 13))
    for key in keys:
        theirs = token_ids[: dice.randint(17, 61)] if dice.random() < 0.4 else prompt(dice.randint(1, 90), start=key)
        sampling = Sampling(temperature=dice.choice((0.0, 1.0)), seed=key, repetition_penalty=dice.choice((1.0, 1.3)))
        engine.submit(
            request(
                key,
                theirs,
                dice.randint(1, 60),
                n=dice.randint(1, 2),
                block_hashes=hashes(theirs, 16),
                priority=dice.randint(0, 2),
                sampling=sampling,
            )
        )
    return keys
