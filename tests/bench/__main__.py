"""`make bench`: the engine against transformers, and the CPU that each service adds to it.

python -m bench --rounds 2 --only engine
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from bench import engine, services
from bench.model import make_model
from bench.report import Figures


def main() -> None:
    arguments = _parse()
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="weir-bench-") as scratch:
        directory = make_model(arguments.model_dir or Path(scratch) / "model")
        if arguments.only != "services":
            figures.update(engine.measure(directory, arguments.rounds))
        if arguments.only != "engine":
            figures.update(services.measure(Path(scratch)))
    print(json.dumps(figures.summary("bench")))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="times each workload is run; the best counts")
    parser.add_argument("--only", choices=["engine", "services"], help="measure one part")
    parser.add_argument("--model-dir", type=Path, help="where the measured model is, or is written; default: temporary")
    return parser.parse_args()


if __name__ == "__main__":
    main()
