"""What the cluster's own parts cost, measured against upstream's or Docker's own, in turn in one run."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The lab is reached as the tests reach it.
sys.path.append(str(ROOT / "tests/support"))
