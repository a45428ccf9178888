"""The fake is a pure function of what it is asked; its other promises are in the engine contract."""

from __future__ import annotations

from contract.engine_contract import GREEDY, Listener, prompt, request
from weir_executor.fake import FakeEngine, FakeEngineConfig
from weir_executor.request import GenerationRequest, Sampling
from weir_executor.step_output import FinishReason


def _run(generation: GenerationRequest, **config: int | None) -> Listener:
    engine, heard = FakeEngine(FakeEngineConfig(**config)), Listener()  # type: ignore[arg-type]
    engine.start(heard)
    engine.submit(generation)
    heard.wait_for_ends(generation.key)
    engine.close()
    return heard


def test_tokens_depend_on_prompt_seed_and_output() -> None:
    runs = [
        _run(request(1, prompt(5), n=2, sampling=Sampling(seed=1))),
        _run(request(1, prompt(6), n=2, sampling=Sampling(seed=1))),
        _run(request(1, prompt(5), n=2, sampling=Sampling(seed=2))),
    ]
    assert len({tuple(heard.tokens[1, index]) for heard in runs for index in range(2)}) == 6
    again = _run(request(8, prompt(5), n=2, sampling=Sampling(seed=1)))
    assert again.tokens[8, 1] == runs[0].tokens[1, 1]


def test_greedy_knows_neither_seed_nor_output() -> None:
    heard = _run(request(1, prompt(5), n=2, sampling=GREEDY))
    assert heard.tokens[1, 0] == heard.tokens[1, 1]


def test_tokens_stay_within_the_vocabulary_and_are_never_eos_by_chance() -> None:
    heard = _run(request(1, prompt(5, vocab_size=12), 2000, ignore_eos=False), vocab_size=12)
    assert set(heard.tokens[1, 0]) == set(range(3, 12))


def test_eos_comes_when_it_is_told_to() -> None:
    heard = _run(request(1, prompt(5), 50, ignore_eos=False), eos_after=7)
    assert len(heard.tokens[1, 0]) == 8
    assert heard.finished[1, 0].finish_reason is FinishReason.STOP
    delayed = _run(request(1, prompt(5), 50, ignore_eos=False, min_tokens=20), eos_after=7)
    assert len(delayed.tokens[1, 0]) == 21
