"""Measured runs: `make bench-engine`, `-kvstore`, `-latency`, `-services`, `-router`, and so on; JSON last.

python -m bench engine --peers vllm openvino --rows decode mixed --rounds 2
python -m bench engine --rows prefix
python -m bench kvstore
python -m bench latency
python -m bench services
python -m bench router --peers smg dynamo
python -m bench router --scenarios slow
python -m bench router --soak 100000
python -m bench speculation
"""

from __future__ import annotations

import weir_chassis  # noqa: F401  # isort: skip  # before gRPC, which it tells how to wait for sockets

import argparse
import json
import tempfile
from pathlib import Path

from bench import accuracy, engine, latency, prefix, services, speculation
from bench.kvstore import run as kvstore
from bench.model import make_model
from bench.peers import PEERS, ROUNDED, SUITE, WEIR, chosen
from bench.report import Figures
from bench.router import run as router
from bench.router import soak
from bench.router.contenders import PEERS as ROUTERS
from bench.router.scenarios import SCENARIOS
from bench.rows import ROWS
from weir_local.placement import find_model

_PREFIX = "prefix"  # the row of `engine` that has a table of its own


def main() -> None:
    arguments = _parse()
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as scratch:
        figures: Figures = arguments.measure(arguments, Path(scratch))
    print(json.dumps(figures.summary(arguments.bench)))


def _engine(arguments: argparse.Namespace, scratch: Path) -> Figures:
    model_dir, figures = make_model(arguments.model_dir).absolute(), Figures()
    if rows := [row for row in ROWS if row.name in arguments.rows]:
        contenders = [WEIR, *ROUNDED, SUITE, *chosen(arguments.peers)]
        figures.update(engine.measure(model_dir, scratch, contenders, rows, arguments.rounds))
        figures.update(accuracy.measure({"random": model_dir, "demo": find_model(None)}))
    if _PREFIX in arguments.rows:
        figures.update(prefix.measure(model_dir, scratch / _PREFIX))
    return figures


def _kvstore(_: argparse.Namespace, scratch: Path) -> Figures:
    return kvstore.measure(scratch)


def _latency(arguments: argparse.Namespace, _: Path) -> Figures:
    return latency.measure(make_model(arguments.model_dir))


def _services(_: argparse.Namespace, scratch: Path) -> Figures:
    return services.measure(scratch)


def _router(arguments: argparse.Namespace, scratch: Path) -> Figures:
    if arguments.soak:
        return soak.measure(scratch, arguments.soak)
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in arguments.scenarios]
    return router.measure(scratch, arguments.peers, scenarios, arguments.rounds)


def _speculation(_: argparse.Namespace, __: Path) -> Figures:
    return speculation.measure()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benches = parser.add_subparsers(dest="bench", required=True)
    of_engine = benches.add_parser("engine", help="the engine and the suite beside the engine's peers")
    of_engine.set_defaults(measure=_engine)
    known = ", ".join(peer.name for peer in PEERS)
    of_engine.add_argument("--peers", nargs="*", default=[], help=f"known: {known}")
    names = [*(row.name for row in ROWS), _PREFIX]
    of_engine.add_argument("--rows", nargs="+", default=names, choices=names)
    of_engine.add_argument("--rounds", type=int, default=2, help="times each row is measured; the best counts")
    place = Path(".weir/bench-model")  # git ignores it; peers keep their converted copies beside it
    of_engine.add_argument("--model-dir", type=Path, default=place, help="where the measured model is, or is written")
    of_kvstore = benches.add_parser("kvstore", help="what the store moves and finds, beside what the machine can do")
    of_kvstore.set_defaults(measure=_kvstore)
    of_latency = benches.add_parser("latency", help="cancellation, and inter-token latency beside a long prompt")
    of_latency.set_defaults(measure=_latency)
    of_latency.add_argument("--model-dir", type=Path, default=place, help="as above")
    of_services = benches.add_parser("services", help="the CPU that each service adds to the bare engine")
    of_services.set_defaults(measure=_services)
    of_router = benches.add_parser("router", help="what a router costs and adds, beside its peers and none")
    of_router.set_defaults(measure=_router)
    scenarios = [scenario.name for scenario in SCENARIOS]
    of_router.add_argument("--peers", nargs="*", default=[], choices=list(ROUTERS))
    of_router.add_argument("--scenarios", nargs="+", default=scenarios, choices=scenarios)
    of_router.add_argument("--rounds", type=int, default=2, help="times all is measured; the least counts")
    of_router.add_argument("--soak", type=int, default=0, metavar="REQUESTS", help="memory over so many, and no more")
    of_speculation = benches.add_parser("speculation", help="the demo model with and without guesses ahead")
    of_speculation.set_defaults(measure=_speculation)
    return parser.parse_args()


if __name__ == "__main__":
    main()
