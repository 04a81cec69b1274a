"""Lets torchvision be imported beside a torch it was not compiled for; on the path of `make test-extras` alone.

Its compiled operators cannot be loaded then, and its Python part stops at the first that is not declared. Two are declared here,
without anything that computes them: whoever calls one gets an error, never a wrong number. Where the compiled part loads,
nothing is declared.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
DECLARED = []  # libraries must stay referenced, or torch forgets what they declared


class _Torchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and not DECLARED:
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec is not None and spec.origin is not None:
                _declare(Path(spec.origin).parent / "_C.so")
            return spec
        return None


def _declare(compiled):
    import torch

    try:
        torch.ops.load_library(str(compiled))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define(f"nms{SCHEMA}")
        library.define(f"qnms{SCHEMA}")
        DECLARED.append(library)


sys.meta_path.insert(0, _Torchvision())
