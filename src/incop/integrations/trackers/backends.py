"""Each tracker's own library. Whatever it raises ends the tracking, never the run."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from incop.errors import MissingExtra
from incop.integrations.trackers.feed import Backend, Feed
from incop.integrations.trackers.rows import tidy
from incop.locks import Lock

EXTRAS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb", "trackio": "trackio"}  # by library
PROJECT = "incop"  # where nothing else is set
PATIENCE = 60.0  # seconds to wait for another run that makes the same store
WANDB_RUNS: set[str] = set()  # open runs of all threads: the last that ends also ends the library's process


def load(module: str) -> Any:
    """Import a tracker's library."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(module, EXTRAS[module], f"--track {module}") from error


def _texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:500] for name, value in parameters.items()}


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def tensorboard(feed: Feed) -> None:
    """Write event files into a folder of their own; there is no place for a page."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    folder, parameters = feed.run.folder / "tensorboard", _texts(feed.run.parameters)
    if feed.known is None:  # events of another run that was begun here
        for file in folder.glob("events.out.tfevents.*"):
            file.unlink()
    with SummaryWriter(str(folder)) as writer:
        if feed.known is None and parameters:
            metrics = {"level/sparsity": 0.0, "level/val_accuracy": 0.0, "level/test_accuracy": 0.0}
            for summary in hparams(parameters, metrics)[:2]:
                writer.file_writer.add_summary(summary)
            lines = [f"| {name} | {text} |" for name, text in {"key": "value", "---": "---", **parameters}.items()]
            writer.add_text("plan", "\n".join(lines))
        for _, row in feed.rows(feed.known or uuid.uuid4().hex):
            for name, value in row.values.items():
                writer.add_scalar(name, value, row.step)
            for name, text in row.texts.items():
                writer.add_text(name, text, row.step)
            writer.flush()  # a killed process loses nothing
        writer.add_text("status", feed.ending.status)


def mlflow(feed: Feed) -> None:
    """Log to a run in a database of its own, or in the store that the user has set; the active run is left alone."""
    library, store = load("mlflow"), feed.run.store
    store.mkdir(parents=True, exist_ok=True)
    if library.is_tracking_uri_set():
        client = library.MlflowClient()
        identity = _mlflow_run(feed, library, client, None)
    else:
        with Lock(store, patience=PATIENCE):  # two that make the same database at once damage it
            client = library.MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
            identity = _mlflow_run(feed, library, client, (store / "mlflow-artifacts").as_uri())
    entities = library.entities
    for _, row in feed.rows(identity):
        now = int(time.time() * 1000)
        metrics = [entities.Metric(name, value, now, row.step) for name, value in row.values.items()]
        tags = [entities.RunTag(name.replace("/", "."), text[:4000]) for name, text in row.texts.items()]
        for start in range(0, len(metrics), 900):  # it takes 1000 at once, and draws no texts: tags hold the latest
            client.log_batch(identity, metrics=metrics[start : start + 900], tags=tags)
    for file in (*feed.ending.files, feed.ending.page):
        if file is not None:
            client.log_artifact(identity, str(file))
    client.set_terminated(identity, {"finished": "FINISHED", "interrupted": "KILLED"}.get(feed.ending.status, "FAILED"))


def _mlflow_run(feed: Feed, library: Any, client: Any, artifacts: str | None) -> str:
    if feed.known is not None:
        with contextlib.suppress(library.MlflowException):  # the store is another, or was removed
            client.update_run(feed.known, status="RUNNING")
            return feed.known
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or feed.run.group or PROJECT
    found = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name, artifacts) if found is None else found.experiment_id
    tags = {"incop.group": feed.run.group} if feed.run.group else {}
    identity = str(client.create_run(experiment, run_name=feed.run.name, tags=tags).info.run_id)
    parameters = [library.entities.Param(tidy(key), text) for key, text in _texts(feed.run.parameters).items()]
    for start in range(0, len(parameters), 100):
        client.log_batch(identity, params=parameters[start : start + 100])
    return identity


def wandb(feed: Feed) -> None:
    """Log to a run beside the user's active one, offline unless WANDB_MODE is set."""
    library, mode = load("wandb"), os.environ.get("WANDB_MODE") or "offline"
    identity = feed.known or uuid.uuid4().hex[:8]
    ours = bool(WANDB_RUNS) or (library.run is None and "WANDB_SERVICE" not in os.environ)
    WANDB_RUNS.add(identity)
    only = {"console": "off", "disable_git": True, "save_code": False, "x_disable_meta": True, "x_disable_stats": True}
    run = library.init(
        mode=mode,
        dir=str(feed.run.folder),
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        group=feed.run.group or None,
        name=feed.run.name,
        id=identity,
        resume="allow" if feed.known is not None and mode != "offline" else None,
        config={name: _plain(value) for name, value in feed.run.parameters.items()},
        reinit="create_new",  # the user's own run stays the active one
        settings=library.Settings(silent=True, **only),
    )
    try:
        run.define_metric("*", step_metric="trained_steps")
        for number, row in feed.rows(identity):  # W&B's own step counts rows, since two may have one x
            run.log({**row.values, **row.texts, "trained_steps": row.step}, step=number)
        run.summary["status"] = feed.ending.status
        if feed.ending.page is not None:
            run.log({"report": library.Html(str(feed.ending.page), inject=False)})
    finally:
        WANDB_RUNS.discard(identity)
        try:
            run.finish(exit_code=int(feed.ending.status != "finished"))
        finally:
            if ours and not WANDB_RUNS and library.run is None:
                library.teardown()  # or its process and its environment variable stay


def trackio(feed: Feed) -> None:
    """Log to a run in Trackio's own database, unless the environment names a Space or a server."""
    library = load("trackio")
    identity = feed.known or uuid.uuid4().hex
    run = library.init(
        project=PROJECT,
        name=f"{feed.run.name}-{identity[:8]}",  # Trackio finds runs by name
        group=feed.run.group or None,
        config={name: _plain(value) for name, value in feed.run.parameters.items()},
        resume="never" if feed.known is None else "allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    number = -1
    try:
        for number, row in feed.rows(identity):  # noqa: B007
            run.log({**row.values, **row.texts}, step=row.step)
        if feed.ending.page is not None:
            run.log({"report": library.Html(feed.ending.page, inject=False)})
    finally:
        run.finish()
    if run.url is None:  # neither Space nor server; it raises nothing where it cannot write
        storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
        kept = storage.get_log_count(run.project, run.name, run_id=run.id)
        if kept <= number:
            raise OSError(f"it kept {kept} of {number + 1} rows")


BACKENDS = {
    "tensorboard": Backend(tensorboard, keeps_pages=False, survives_kill=True),
    "mlflow": Backend(mlflow, keeps_pages=True, survives_kill=True),
    "wandb": Backend(wandb, keeps_pages=True, survives_kill=False),  # it writes every 15 seconds
    "trackio": Backend(trackio, keeps_pages=True, survives_kill=False),  # it writes twice a second
}
