"""`--track`: the listeners of a run that tell trackers, beside those that were there."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from incop.cli.live import say
from incop.experiments.runs import Progress
from incop.integrations import trackers


def tracked(progress: Progress, names: str | None, *, group: str = "", store: Path | None = None) -> Progress:
    """Return listeners that tell the named trackers too; the libraries are imported now."""
    if names is None:
        return progress
    tracker = trackers.Tracker(names, group=group, store=store, on_notice=progress.on_notice or say)
    return dataclasses.replace(
        progress,
        on_check=_both(progress.on_check, tracker.check),
        on_level=_both(progress.on_level, tracker.level),
        on_begin=tracker.begin_run,
        on_end=tracker.end_run,
    )


def of_comparison(names: str, folder: Path) -> Progress:
    """Return the listeners of one run of a comparison, made in its own process, of whose output nobody reads anything."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends; some trackers greet every run
    return tracked(Progress(on_notice=say), names, group=folder.absolute().name, store=folder / "trackers")


def _both(first: Callable[[Any], None] | None, second: Callable[[Any], None]) -> Callable[[Any], None]:
    def call(record: Any) -> None:
        if first is not None:
            first(record)
        second(record)

    return call
