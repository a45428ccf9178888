"""`make bench-gpu`: an 8B shape on a CUDA device, beside transformers in the same run and against the device's limits.

python -m bench.gpu              on a CUDA device; without one it says so, and that the figures are pending
python -m bench.gpu --dry-run    the whole script on a CPU with a tiny shape: its numbers mean nothing
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu import bare_image

bare_image.complete()

import torch  # noqa: E402 (after what the image lacks)

from bench.gpu import contenders, roofline  # noqa: E402
from bench.gpu.contenders import Answer, Timed  # noqa: E402
from bench.gpu.shape import LLAMA_3_8B, TINY, Shape, write_model  # noqa: E402
from bench.report import Figures, print_table  # noqa: E402
from bench.workload import Work  # noqa: E402

GOALS = {
    "decode_1": 0.8,
    "decode_128": 0.6,
    "prefill": 0.6,
    "continuous_32": 3.0,
    "continuous_128": 3.0,
}
_PENDING = "no CUDA device here: nothing was measured"


@dataclass(frozen=True, slots=True)
class Plan:
    shape: Shape
    device: torch.device
    batches: tuple[int, ...] = (1, 32, 128)
    prompt_tokens: int = 128
    new_tokens: int = 128
    prefill_lengths: tuple[int, ...] = (2048, 2048, 2048, 2048)
    roofline: dict[str, int] = field(default_factory=dict)

    @property
    def most_tokens(self) -> int:
        return max(max(self.batches) * (self.prompt_tokens + self.new_tokens), sum(self.prefill_lengths))

    def work(self, batch: int, round_: int = 0) -> Work:
        return Work(self._prompts([self.prompt_tokens] * batch, round_), [self.new_tokens] * batch)

    def prefill(self, round_: int = 0) -> Work:
        return Work(self._prompts(list(self.prefill_lengths), round_), [1] * len(self.prefill_lengths))

    def _prompts(self, lengths: list[int], seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randint(3, self.shape.vocab, (length,), generator=generator).tolist() for length in lengths]


_DRY = Plan(TINY, torch.device("cpu"), (1, 2, 3), 6, 4, (12, 12), {"copied_bytes": 1 << 20, "side": 64})
Measured = dict[str, Timed]  # by "1", "32", …, and "prefill"


def main() -> None:
    arguments = _parse()
    if arguments.dry_run:
        figures = _run(_DRY)
    elif torch.cuda.is_available():
        figures = _run(Plan(LLAMA_3_8B, torch.device("cuda")))
    else:
        print_table(
            "On a GPU", ["what", "goal", "measured"], [[name, str(goal), "pending"] for name, goal in GOALS.items()]
        )
        print(_PENDING)
        figures = Figures(goals=dict(GOALS), missing={"cuda": _PENDING})
    print(json.dumps(figures.summary("gpu") | ({"pending": _PENDING} if figures.missing else {})))


def _run(plan: Plan) -> Figures:
    limits = roofline.measure(plan.device, plan.shape.dtype, **plan.roofline)
    print(
        f"copy {limits.bytes_per_second / 1e9:.0f} GB/s, product {limits.flops_per_second / 1e12:.1f} TFLOP/s",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as scratch:
        directory = write_model(plan.shape, Path(scratch), plan.device)
        ours = _measure(
            "weir", plan, contenders.weir(directory, plan.shape, plan.device, max(plan.batches), plan.most_tokens)
        )
        generate = _measure("generate", plan, contenders.transformers_generate(directory, plan.device))
        continuous = _measure("continuous", plan, contenders.transformers_continuous(directory, plan.device))
    figures = _figures(plan, limits, ours, {"generate": generate, "continuous": continuous})
    _print(plan, figures)
    return figures


def _measure(name: str, plan: Plan, contender: AbstractContextManager[Answer]) -> Measured:
    """Each workload twice, with prompts of its own: what is compiled, captured or chosen once is no part of it."""
    measured = {}
    with contender as answer:
        for label, work in _workloads(plan):
            answer(work(0))
            measured[label] = answer(work(1))
            print(f"  {name:<12} {label:<8} {measured[label].seconds:8.3f} s", flush=True)
    del answer
    contenders.free()
    return measured


def _workloads(plan: Plan) -> Iterator[tuple[str, Callable[[int], Work]]]:
    for batch in plan.batches:
        yield str(batch), lambda round_, batch=batch: plan.work(batch, round_)  # type: ignore[misc]
    yield "prefill", plan.prefill


def _figures(plan: Plan, limits: roofline.Roofline, ours: Measured, peers: dict[str, Measured]) -> Figures:
    figures = Figures(goals=dict(GOALS) if plan is not _DRY else {})
    figures.measured["copy_bytes_per_second"] = limits.bytes_per_second
    figures.measured["flops_per_second"] = limits.flops_per_second
    context = plan.prompt_tokens + plan.new_tokens / 2
    for batch in plan.batches:
        step = ours[str(batch)].decode_step_seconds
        assert step is not None, "some steps decode only"
        figures.measured[f"decode_{batch}_step_seconds"] = step
        figures.ratios[f"decode_{batch}"] = limits.decode_seconds(plan.shape, batch, context) / step
    taken = ours["prefill"].seconds
    figures.measured["prefill_tokens_per_second"] = sum(plan.prefill_lengths) / taken
    figures.ratios["prefill"] = limits.prefill_seconds(plan.shape, plan.prefill_lengths) / taken
    for peer, theirs in peers.items():
        for label, timed in theirs.items():
            figures.ratios[f"{peer}_{label}"] = timed.seconds / ours[label].seconds
            figures.measured[f"{peer}_{label}_seconds"] = timed.seconds
    figures.measured.update({f"weir_{label}_seconds": timed.seconds for label, timed in ours.items()})
    return figures


def _print(plan: Plan, figures: Figures) -> None:
    def rows(names: Sequence[str]) -> list[list[str]]:
        return [[name, *figures.cells(name)] for name in names]

    shares = [*(f"decode_{batch}" for batch in plan.batches), "prefill"]
    print_table("Share of the device's limit", ["what", "share", "goal", ""], rows(shares))
    peers = [name for name in figures.ratios if name not in shares]
    print_table("Times as fast as transformers, same work", ["way and batch", "ratio", "goal", ""], rows(peers))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, a tiny shape: to try the script")
    return parser.parse_args()


if __name__ == "__main__":
    main()
