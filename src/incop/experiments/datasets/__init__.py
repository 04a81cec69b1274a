"""Real image-classification data, kept as uint8 tensors: never a part of it, never silently different."""

from __future__ import annotations

from incop.experiments.datasets.augmentation import crop_and_flip
from incop.experiments.datasets.catalogue import CatalogueEntry, describe, names
from incop.experiments.datasets.loading import check_name, load
from incop.experiments.datasets.splits import Dataset, Split

__all__ = ["CatalogueEntry", "Dataset", "Split", "check_name", "crop_and_flip", "describe", "load", "names"]
