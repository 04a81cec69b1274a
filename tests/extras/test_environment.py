"""The extras' libraries are all here: a library that cannot be imported would only make tests vanish."""

import importlib

import pytest

LIBRARIES = [
    "accelerate",
    "datasets",
    "lightning",
    "mlflow",
    "tensorboard",
    "timm",
    "torchmetrics",
    "torchvision",
    "trackio",
    "transformers",
    "wandb",
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.filterwarnings("ignore")  # what a library's own import warns of is not ours
def test_library_can_be_imported(library):
    importlib.import_module(library)
