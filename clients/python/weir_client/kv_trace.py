"""`weir kv trace`: hit rates of every policy on a recorded or made up trace. Needs the store's own code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from weir_kvstore.policies.make import POLICIES
from weir_kvstore.replay.replay import distinct_blocks, replay_all
from weir_kvstore.replay.synthetic import REQUESTS, SYNTHETIC
from weir_kvstore.replay.table import table
from weir_kvstore.replay.trace import Lookup, TraceError, read_trace, write_trace

_DEFAULT_PERCENTS = (5, 10, 25, 50)


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--synthetic", type=click.Choice(list(SYNTHETIC)), help="Make a trace up instead.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same trace.")
@click.option("--requests", type=click.IntRange(1, 1_000_000), default=REQUESTS, show_default=True, help="Of it.")
@click.option("--blocks", multiple=True, type=click.IntRange(1), help="A capacity. May be given several times.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the trace to this file, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per policy and capacity.")
def trace(
    *,
    file: Path | None,
    synthetic: str | None,
    seed: int,
    requests: int,
    blocks: Sequence[int],
    save: Path | None,
    as_json: bool,
) -> None:
    """Play FILE, or a synthetic trace, to every eviction policy at several capacities, and print the hit rates.

    A store that is started with WEIR_KVSTORE_TRACE_FILE records such a FILE. Without --blocks, the capacities are
    5, 10, 25 and 50 % of the distinct blocks of the trace.

    \b
    Example:
      weir kv trace --synthetic scan --seed 7
      weir kv trace /var/log/weir/kv-trace.jsonl --blocks 50000 --blocks 100000
    """
    lookups = _lookups(file, synthetic, seed, requests)
    if save is not None:
        write_trace(save, lookups)
    distinct = distinct_blocks(lookups)
    capacities = sorted(set(blocks) or {max(1, distinct * percent // 100) for percent in _DEFAULT_PERCENTS})
    results = list(replay_all(lookups, capacities, tuple(POLICIES)))
    if as_json:
        for result in results:
            click.echo(json.dumps({**asdict(result), "hit_rate": result.hit_rate}))
        return
    asked = sum(len(lookup.chain) for lookup in lookups)
    click.echo(f"{len(lookups)} requests, {asked} blocks asked for, {distinct} distinct; hit rates by blocks held")
    click.echo(table(results))


def _lookups(file: Path | None, synthetic: str | None, seed: int, requests: int) -> list[Lookup]:
    """Raises click.ClickException for a file that is no trace."""
    if (file is None) == (synthetic is None):
        raise click.UsageError("one of FILE and --synthetic says which trace")
    try:
        lookups = list(read_trace(file)) if file is not None else list(SYNTHETIC[str(synthetic)](seed, requests))
    except (TraceError, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from error
    if not any(lookup.block_hashes for lookup in lookups):
        raise click.ClickException("the trace asks for no block: record one with WEIR_KVSTORE_TRACE_FILE")
    return lookups
