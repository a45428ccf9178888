"""Requests made to do harm, in one batch with one that was not: what they get, and that nobody else notices.

Guides that dead-end are in `test_guided_engine.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from contract.engine_contract import Listener, is_idle, prompt, request
from contract.executor_contract import calling, connect, prompt_of
from models_fixture import VOCAB_SIZE, save_tiny_model
from weir.inference.v1.sampling_pb2 import SamplingParameters
from weir_chassis.errors import Internal, InvalidArgument, reason_name
from weir_chassis.server import new_chassis
from weir_chassis.testing import assert_no_leases, serve_in_memory
from weir_executor.engine import Engine
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.request import Sampling
from weir_executor.service import build
from weir_executor.settings import ExecutorSettings

_POISONED_TOKEN = 299
_ALL = frozenset(range(VOCAB_SIZE))
_DRAWN = Sampling(temperature=1.0, seed=3)

# Fields of the request, and the error it ends with, if it does.
_POISONS: Mapping[str, tuple[dict[str, Any], type[Exception] | None]] = {
    "weights that are not finite": ({"token_ids": [5, _POISONED_TOKEN, 6]}, Internal),
    "a bias of infinity": ({"sampling": Sampling(temperature=0.0, logit_bias={7: math.inf})}, None),
    "a bias of infinity, drawn": ({"sampling": Sampling(logit_bias={7: math.inf})}, None),
    "every token biased away": ({"sampling": Sampling(logit_bias=dict.fromkeys(_ALL, -math.inf))}, None),
    "a bias that is no number": ({"sampling": Sampling(logit_bias={7: math.nan}, top_p=0.5, top_k=3)}, None),
    "1,000 stop tokens": ({"stop_token_ids": frozenset(range(1000))}, InvalidArgument),
    "every token a stop token": ({"stop_token_ids": _ALL, "min_tokens": 8}, None),
    "every token a stop token, drawn": ({"stop_token_ids": _ALL, "min_tokens": 8, "sampling": _DRAWN}, None),
    "top-k beyond the vocabulary": ({"sampling": Sampling(top_k=2**31)}, None),
    "a temperature of nearly nothing": ({"sampling": Sampling(temperature=1e-38, min_p=1.0, top_p=1e-30)}, None),
    "penalties beyond float": ({"sampling": Sampling(repetition_penalty=1e38, frequency_penalty=1e38)}, None),
    "log-probabilities of nothing": (
        {"sampling": Sampling(temperature=0.0, top_logprobs=20, logit_bias=dict.fromkeys(_ALL, -math.inf))},
        None,
    ),
}


@pytest.fixture(scope="module")
def poisoned_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whatever reads one token's embedding is no number from there on."""
    model_dir = save_tiny_model("llama2", tmp_path_factory.mktemp("poison") / "model")
    weights = load_file(model_dir / "model.safetensors")
    weights["model.embed_tokens.weight"][_POISONED_TOKEN] = torch.nan
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})
    return model_dir


def _engine(model_dir: Path, kernels: str) -> Engine:
    return load_engine(
        PagedEngineConfig(model_dir, kernels=kernels, num_blocks=64, num_threads=1, check_integrity=True)
    )


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_none_of_them_harms_a_neighbour_or_the_engine(poisoned_dir: Path, kernels: str) -> None:
    """Each once before and once after the healthy one, which says what it says alone."""
    engine, heard = _engine(poisoned_dir, kernels), Listener()
    engine.start(heard)
    engine.submit(request(0, prompt(20), 30))
    heard.wait_for_ends(0)
    expected = {}
    for place in range(2):
        for number, (fields, error) in enumerate(_POISONS.values()):
            key = 100 * (place + 1) + number
            try:
                engine.submit(request(key, **{"token_ids": prompt(9), "max_tokens": 12, **fields}))
                expected[key] = error
            except InvalidArgument:
                assert error is InvalidArgument
        if not place:
            engine.submit(request(1, prompt(20), 30))
    ends = dict(zip(expected, heard.wait_for_ends(*expected), strict=True))
    heard.wait_for_ends(1)
    assert heard.tokens[1, 0] == heard.tokens[0, 0]
    for key, error in expected.items():
        assert isinstance(ends[key].error, error or type(None)), list(_POISONS)[key % 100]
        assert all(0 <= token_id < VOCAB_SIZE for token_id in heard.tokens[key, 0])
    engine.submit(request(2, prompt(20), 30))
    heard.wait_for_ends(2)
    assert heard.tokens[2, 0] == heard.tokens[0, 0], "nothing of the poison is left in any block"
    engine.check_health()
    assert not heard.wrongs
    heard.wait_for(lambda: is_idle(engine.load()) or True, "idle")
    engine.close()


async def test_on_a_stream_each_is_told_by_itself_and_the_others_go_on(poisoned_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(poisoned_dir, directory)
    (directory / "tokenizer.json").write_text("{}")
    settings = ExecutorSettings(model_dir=directory, model="tiny", num_blocks=64, num_threads=1)
    chassis, stop_ids = new_chassis("executor"), list(range(1000))
    async with (
        build(settings, chassis) as servicers,
        chassis.background,
        serve_in_memory(*servicers.registrations) as channel,
        calling(connect(channel)) as caller,
    ):
        await caller.submit(1, prompt_of(20), max_tokens=30)
        await caller.until_told(1)
        await caller.submit(2, [5, _POISONED_TOKEN, 6])
        await caller.submit(3, sampling=SamplingParameters(logit_bias={7: math.inf}))
        await caller.submit(4, stopping={"stop_token_ids": stop_ids})
        await caller.submit(5, sampling=SamplingParameters(top_k=2**31))
        await caller.submit(6, prompt_of(20), max_tokens=30)
        await caller.until_told(2, 3, 4, 5, 6)
        reasons = {handle: reason_name(error.reason) for handle, error in caller.failed.items()}
        assert reasons == {2: "INTERNAL", 3: "INVALID_ARGUMENT", 4: "INVALID_ARGUMENT"}
        assert "sampling.logit_bias[7]" in caller.failed[3].message
        assert "1000 ids; at most 64" in caller.failed[4].message
        assert caller.tokens[6, 0] == caller.tokens[1, 0]
        assert len(caller.tokens[5, 0]) == 8
    assert_no_leases(chassis.leases)
