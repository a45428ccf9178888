"""`python -m weir_executor.host`: starts an executor for each model that it is told to load."""

import sys

from weir_chassis.server import run
from weir_executor.host.service import SERVICE

if __name__ == "__main__":
    sys.exit(run(SERVICE))
