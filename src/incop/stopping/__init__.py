"""Stop rules: pure functions of a level's history and the dense network's flow; each answer has a reason; no torch.

| rule | in words | it stops when |
|---|---|---|
| `FlowRestored` | `flow within 0.05` | the flow is that near to the dense network's |
| `FlowSettled` | `flow settled 0.05 for 3` | the distance has stopped falling |
| `MaskSettled` | `mask settled 0.1 for 5` | the mask that would be cut now has stopped moving |
| `AccuracyRestored` | `accuracy restored`, `accuracy within 0.005` | validation accuracy is the dense network's again |
| `MetricRestored` | `metric restored`, `metric within 0.5` | so is the metric, whatever it counts, in its own direction |
| `LossPlateau` | `loss settled 0.01 for 3` | the training loss has stopped falling |
| `AfterEpochs` | `after 20 epochs` | blindly, after so many epochs |

`a | b` ("a or b") stops when either does, `a & b` ("a and b") when both do.
"""

from incop.stopping.rules import (
    AccuracyRestored,
    AfterEpochs,
    Both,
    Either,
    FlowRestored,
    FlowSettled,
    LossPlateau,
    MaskSettled,
    MetricRestored,
    Rule,
)
from incop.stopping.words import PHRASES as PHRASES
from incop.stopping.words import parse

__all__ = [
    "AccuracyRestored",
    "AfterEpochs",
    "Both",
    "Either",
    "FlowRestored",
    "FlowSettled",
    "LossPlateau",
    "MaskSettled",
    "MetricRestored",
    "Rule",
    "parse",
]
