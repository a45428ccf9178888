"""`python -m weir_kvstore`: the store as a process of its own."""

import sys

from weir_chassis.server import run
from weir_kvstore.service import SERVICE

if __name__ == "__main__":
    sys.exit(run(SERVICE))
