"""Trackers: TensorBoard, MLflow, Weights & Biases and Trackio show a search; its run folder stays the truth."""

from incop.integrations.trackers.tracker import Tracker, track

__all__ = ["Tracker", "track"]
