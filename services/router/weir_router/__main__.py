"""`python -m weir_router`: the router by itself, told by the environment what it is."""

import sys

from weir_chassis.server import run
from weir_router.service import SERVICE

if __name__ == "__main__":
    sys.exit(run(SERVICE))
