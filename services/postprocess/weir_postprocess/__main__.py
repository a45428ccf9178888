"""`python -m weir_postprocess`: serves the models that WEIR_POSTPROCESS_MODELS names."""

import sys

from weir_chassis.server import run
from weir_postprocess.service import SERVICE

if __name__ == "__main__":
    sys.exit(run(SERVICE))
