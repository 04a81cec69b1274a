"""What tests of the extras share with the fast suite: the contracts of trainers."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))


def pytest_configure(config):
    """Let Lightning hint at `srun`: the tests run where Slurm is installed, and not under it."""
    config.addinivalue_line("filterwarnings", "ignore:The `srun` command is available")
