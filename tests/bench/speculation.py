"""`make bench-speculation`: what guessing ahead brings, with the demo model and its draft.

The bare engine, greedy, as it ships: drafts as many as pay. The same questions one after the other, and all at once;
each way in turn within one round, and the best round of each counts. Every way must give the same tokens.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from bench.report import Figures, print_table
from weir_executor.engine import Engine
from weir_executor.paged.engine import PagedEngineConfig, load_engine
from weir_executor.paged.speculation.drafter import SpeculationOptions
from weir_executor.request import GenerationRequest, Sampling, SpeculationMode
from weir_executor.step_output import StepOutput

_MODEL, _DRAFT = Path("deploy/models/demo"), Path("deploy/models/demo-draft")
_TOKENS, _ROUNDS, _AT_ONCE = 200, 4, 32
# Under load guesses cost more than they bring, and are to switch themselves off.
_HARMLESS = {SpeculationMode.NGRAM: 0.95, SpeculationMode.DRAFT_MODEL: 0.95}
_ANSWER_SECONDS = 120.0  # nothing here takes as long: the engine hangs
_QUESTIONS = (
    "What is a weir?",
    "What is the KV cache?",
    "What does the router do?",
    "Which module parses command-line arguments?",
    "Tell me a short story about a fox.",
    "Tell me a story about a heron and a miller.",
)
_TALK = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_PASSAGE = "A weir is a low dam across a river that holds the water back and lets it flow over the top. "


@dataclass(frozen=True, slots=True)
class _Work:
    name: str
    prompts: Sequence[list[int]]
    goals: Mapping[SpeculationMode, float]  # times as fast as without guesses
    at_once: int = 1
    ignores_eos: bool = False


@dataclass(slots=True)
class _Run:
    tokens: list[list[int]]
    seconds: float
    ignores_eos: bool
    num_drafts: int = 0
    num_accepted: int = 0

    @property
    def rate(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


def measure() -> Figures:
    figures = Figures()
    tokenizer = Tokenizer.from_file(str(_MODEL / "tokenizer.json"))
    talk = [tokenizer.encode(_TALK.format(question)).ids for question in _QUESTIONS]
    copied = [tokenizer.encode(_PASSAGE * 6).ids]
    for work in (
        _Work("answers, one at a time", talk, {SpeculationMode.DRAFT_MODEL: 1.0}),
        _Work("a passage over and over", copied, {SpeculationMode.NGRAM: 1.0}, ignores_eos=True),
        _Work(f"answers, {_AT_ONCE} at once", [talk[i % len(talk)] for i in range(_AT_ONCE)], _HARMLESS, _AT_ONCE),
    ):
        _measure_workload(work, figures)
    return figures


def _measure_workload(work: _Work, figures: Figures) -> None:
    modes = (SpeculationMode.OFF, SpeculationMode.NGRAM, SpeculationMode.DRAFT_MODEL)
    engines = {mode: _Asker(mode) for mode in modes}
    runs: dict[SpeculationMode, list[_Run]] = {mode: [] for mode in modes}
    try:
        for _ in range(_ROUNDS + 1):  # the first warms up
            for mode, asker in engines.items():
                runs[mode].append(asker.ask(work))
    finally:
        for asker in engines.values():
            asker.close()
    best = {mode: max(of_mode[1:], key=lambda run: run.rate) for mode, of_mode in runs.items()}
    lines = []
    for mode, run in best.items():
        assert run.tokens == best[SpeculationMode.OFF].tokens, f"{mode.value} changed a token"
        key = f"{work.name.replace(' ', '_').replace(',', '')}_{mode.value}"
        figures.measured[f"{key}_tokens_per_second"] = run.rate
        figures.ratios[key] = run.rate / best[SpeculationMode.OFF].rate
        if mode in work.goals:
            figures.goals[key] = work.goals[mode]
        share = f"{run.num_accepted} of {run.num_drafts}" if run.num_drafts else "-"
        lines.append([mode.value, f"{run.rate:.0f} tokens/s", share, *figures.cells(key)])
    header = ["mode", "rate", "drafts accepted", "ratio", "goal", ""]
    print_table(f"Speculation: {work.name}", header, lines)


class _Asker:
    """An engine in one mode, as it ships."""

    def __init__(self, mode: SpeculationMode) -> None:
        config = PagedEngineConfig(_MODEL, kv_cache_bytes=256 << 20, draft_model_dir=_DRAFT, prefix_cache=False)
        self._engine: Engine = load_engine(replace(config, speculation=SpeculationOptions(mode)))
        self._steps = queue.SimpleQueue[StepOutput]()
        self._engine.start(self._steps.put)
        self._keys = 0

    def close(self) -> None:
        self._engine.close()

    def ask(self, work: _Work) -> _Run:
        prompts, at_once = work.prompts, work.at_once
        run = _Run([[] for _ in prompts], 0.0, work.ignores_eos)
        started = time.perf_counter()
        for first in range(0, len(prompts), at_once):
            self._ask_together(prompts[first : first + at_once], run.tokens[first : first + at_once], run)
        run.seconds = time.perf_counter() - started
        return run

    def _ask_together(self, prompts: Sequence[list[int]], tokens: Sequence[list[int]], run: _Run) -> None:
        base, self._keys = self._keys, self._keys + len(prompts)
        for index, token_ids in enumerate(prompts):
            greedy = Sampling(temperature=0.0)
            asked = GenerationRequest(base + index, token_ids, _TOKENS, sampling=greedy, ignore_eos=run.ignores_eos)
            self._engine.submit(asked)
        ended = 0
        while ended < len(prompts):
            step = self._steps.get(timeout=_ANSWER_SECONDS)
            for output in step.outputs:
                tokens[output.key - base].extend(output.token_ids)
            for end in step.ended:
                ended += 1
                run.num_drafts += end.draft_tokens
                run.num_accepted += end.accepted_draft_tokens
