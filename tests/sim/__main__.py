"""`make simulate`: every policy on every workload. Simulated times compare policies; they are no measurements."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from sim.run import Figures, Run
from sim.workloads import WORKLOADS, Workload
from weir_router.policies.make import POLICIES, PolicyName, PolicyOptions, make_policy


def simulate(name: PolicyName, workload: Workload, seed: int) -> Figures:
    policies = [make_policy(PolicyOptions(policy=name)) for _ in range(workload.routers)]
    return Run(policies, workload, seed).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workload", choices=list(WORKLOADS), action="append")
    arguments = parser.parse_args()
    for name in arguments.workload or WORKLOADS:
        workload = WORKLOADS[name](arguments.seed)
        print(f"\n{name}: {' '.join((WORKLOADS[name].__doc__ or '').split())}")
        print("\n".join(_table(workload, arguments.seed)))


def _table(workload: Workload, seed: int) -> Iterator[str]:
    yield f"  {'policy':<26}{'mean TTFT':>11}{'p99 TTFT':>11}{'cached':>9}{'imbalance':>11}{'peak queue':>12}"
    for policy in POLICIES:
        figures = simulate(policy, workload, seed)
        assert not figures.unanswered, (policy, figures.unanswered)
        yield (
            f"  {policy:<26}{1e3 * figures.mean_ttft:>8.0f} ms{1e3 * figures.p99_ttft:>8.0f} ms"
            f"{figures.cached_share:>9.0%}{figures.imbalance:>11.2f}{figures.peak_waiting:>12}"
        )


if __name__ == "__main__":
    main()
