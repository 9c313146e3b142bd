"""Lets these tests import `exchanges`, which the recorder shares: pytest imports test files by their path alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
