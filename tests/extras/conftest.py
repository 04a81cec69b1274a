"""What tests of the extras share with the fast suite: the contracts of trainers."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))


# What libraries warn of in their own affairs, each by its words; any other warning is an error, as everywhere.
LIBRARIES = (
    "The `srun` command is available",  # Lightning's hint: the tests run where Slurm is installed, and not under it
    ".*treespec, LeafSpec.*deprecated",  # Lightning's own use of torch's pytrees, at every fit with several batches
    "Checkpoint directory .* exists and is not empty",  # Lightning, where a fit goes on in the folder of the one before
    "The ``noload`` loader strategy is deprecated",  # MLflow's own use of SQLAlchemy, when it is imported
)


def pytest_configure(config):
    """Let these warnings of libraries pass."""
    for words in LIBRARIES:
        config.addinivalue_line("filterwarnings", f"ignore:{words}")
