"""`python -m weir_executor`: serves the model that WEIR_EXECUTOR_MODEL_DIR names."""

import sys

from weir_chassis.server import EXIT_USAGE, run
from weir_chassis.settings import SettingsError
from weir_executor.service import SERVICE


def main() -> int:
    try:
        return run(SERVICE)
    except SettingsError as error:  # a model that cannot be served, found while the service is built
        print(f"{SERVICE.name}: {error}", file=sys.stderr)  # noqa: T201  # for the operator, as `run` says the others
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
