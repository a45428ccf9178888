"""`python -m weir_executor`: serves the model that WEIR_EXECUTOR_MODEL_DIR names."""

import sys

from weir_chassis.server import run
from weir_executor.service import SERVICE

if __name__ == "__main__":
    sys.exit(run(SERVICE))
