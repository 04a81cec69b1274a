"""What tests of the extras share with the fast suite: the contracts of trainers."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
