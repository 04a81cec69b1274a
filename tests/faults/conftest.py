"""What tests of faults share: the hostile inputs that the fuzzing campaign draws from too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "campaigns"))
