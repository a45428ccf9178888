"""`python -m weir_tokenizer`: serves the models that WEIR_TOKENIZER_MODELS names."""

import sys

from weir_chassis.server import run
from weir_tokenizer.service import SERVICE

if __name__ == "__main__":
    sys.exit(run(SERVICE))
