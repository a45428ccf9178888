"""Puts the repository's root on the path: the training package is run from there and is never installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
