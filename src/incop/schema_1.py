"""What incop wrote before schema 2, in which a metric's value was called `score`, in today's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def record(data: Mapping[str, Any], accuracy_key: str) -> dict[str, Any]:
    """Return the data of a check or level of schema 1 as schema 2 has them; others as they are.

    Args:
        data: a record's JSON object.
        accuracy_key: the key under which it holds an accuracy, which is the same in both.
    """
    found = dict(data)
    value = found.pop("score", None)
    if value is not None:
        found.pop(accuracy_key, None)
        return {"metric": "metric"} | found | {"metric_value": value}  # a check did not name its metric
    if found.get("metric", "") is None:
        del found["metric"]
    return found


def reference_value(state: Mapping[str, Any]) -> Any:
    """Return the dense network's value of the metric from the state of a search."""
    if "reference_value" in state:
        return state["reference_value"]
    value = state.get("reference_score")
    return state["reference_accuracy"] if value is None else value
