"""`python -m weir_router`: the router by itself, told by the environment what it is."""

import sys

from weir_chassis.polling import poll_with_one_thread

poll_with_one_thread()  # before anything imports gRPC

from weir_chassis.server import run  # noqa: E402
from weir_router.service import SERVICE  # noqa: E402

if __name__ == "__main__":
    sys.exit(run(SERVICE))
