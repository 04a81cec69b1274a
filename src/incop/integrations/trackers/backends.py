"""The trackers' libraries: what each is told, in its own words. Only this file knows them."""

from __future__ import annotations

import importlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from incop.errors import MissingExtra
from incop.integrations.trackers.line import About, Backend, End
from incop.integrations.trackers.rows import Row, tidy
from incop.locks import Lock

__all__ = ["BACKENDS", "MLflow", "TensorBoard", "Trackio", "Wandb"]

PROJECT = "incop"  # where nothing else is said
AT_ONCE = 900  # metrics in one batch of MLflow, which takes 1000
PARAMETERS_AT_ONCE = 100  # as MLflow takes them
LONGEST = 500  # signs of a parameter's value; MLflow takes 6000, but nobody reads them
LONGEST_TEXT = 4000  # signs of a tag
PATIENCE = 60.0  # seconds to wait for another run that makes the same store


def load(module: str, *, extra: str) -> Any:
    """Import a tracker's library.

    Raises:
        MissingExtra: it is not installed.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(library, extra, f"--track {extra}") from error


def _texts(parameters: Mapping[str, object]) -> dict[str, str]:
    return {str(key): str(value)[:LONGEST] for key, value in parameters.items()}


def _plain(value: object) -> object:
    return [_plain(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


class TensorBoard:
    """Event files in a folder of their own; numbers there have seven digits. It keeps no pages."""

    keeps_pages = False
    survives_kill = True

    def __init__(self) -> None:
        load("tensorboard", extra="tensorboard")
        self._writer: Any = None

    def begin(self, about: About, identity: str | None) -> str:
        """Open a new event file, beside those that are there already when a run is gone on with."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = about.folder / "tensorboard"
        if identity is None and folder.is_dir():  # of a run that was begun here before, and is begun anew
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        self._writer = SummaryWriter(str(folder))
        if identity is None and about.parameters:
            known = _texts(about.parameters)
            shown = {"level/sparsity": 0.0, "level/val_accuracy": 0.0, "level/test_accuracy": 0.0}
            for summary in hparams(known, shown)[:2]:
                self._writer.file_writer.add_summary(summary)
            lines = ["| key | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in known.items())]
            self._writer.add_text("plan", "\n".join(lines))
            self._writer.flush()
        return identity or uuid.uuid4().hex

    def kept(self) -> int | None:
        """All of them."""
        return None

    def row(self, row: Row, number: int) -> None:
        """Write and flush: a process that is killed loses nothing that was told."""
        now = time.time()
        for name, value in row.values.items():
            self._writer.add_scalar(name, value, row.at, walltime=now)
        for name, text in row.texts.items():
            self._writer.add_text(name, text, row.at, walltime=now)
        self._writer.flush()

    def end(self, end: End) -> None:
        """Close the file."""
        self._writer.add_text("status", end.status)
        self._writer.close()

    def drop(self) -> None:
        """Close the file, if it still can be."""
        if self._writer is not None:
            self._writer.close()


class MLflow:
    """A run of its own in a database of its own, or in the store the user has set; the active run is left alone."""

    keeps_pages = True
    survives_kill = True

    def __init__(self) -> None:
        self._library = load("mlflow", extra="mlflow")
        self._client: Any = None
        self._run = ""

    def begin(self, about: About, identity: str | None) -> str:
        """Find the run in the store, or make it, and its experiment."""
        told = self._library.is_tracking_uri_set()
        about.store.mkdir(parents=True, exist_ok=True)
        if told:
            self._client, pages = self._library.MlflowClient(), None
            self._open(about, identity, pages)
        else:
            pages = (about.store / "mlflow-artifacts").as_uri()
            with Lock(about.store, patience=PATIENCE):  # two that make the same database at once damage it
                self._client = self._library.MlflowClient(tracking_uri=f"sqlite:///{about.store / 'mlflow.db'}")
                self._open(about, identity, pages)
        return self._run

    def _open(self, about: About, identity: str | None, pages: str | None) -> None:
        if identity is not None:
            try:
                self._client.get_run(identity)
                self._client.update_run(identity, status="RUNNING")
                self._run = identity
                return
            except self._library.MlflowException:
                pass  # the store is another, or was removed: all is told again
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or about.group or PROJECT
        found = self._client.get_experiment_by_name(name)
        place = found.experiment_id if found is not None else self._client.create_experiment(name, pages)
        tags = {"incop.group": about.group} if about.group else {}
        self._run = self._client.create_run(place, run_name=about.name, tags=tags).info.run_id
        parameters = [self._library.entities.Param(tidy(key), text) for key, text in _texts(about.parameters).items()]
        for few in _batches(parameters, PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run, params=few)

    def kept(self) -> int | None:
        """All of them."""
        return None

    def row(self, row: Row, number: int) -> None:
        """Log the numbers in one batch; MLflow draws no texts, so the latest stand in tags."""
        entities, now = self._library.entities, int(time.time() * 1000)
        metrics = [entities.Metric(name, float(value), now, row.at) for name, value in row.values.items()]
        tags = [entities.RunTag(name.replace("/", "."), text[:LONGEST_TEXT]) for name, text in row.texts.items()]
        for few in _batches(metrics, AT_ONCE):
            self._client.log_batch(self._run, metrics=few, tags=tags)

    def end(self, end: End) -> None:
        """Keep the records and the page as artifacts, and say how the run ended."""
        for file in (*end.files, *(() if end.page is None else (end.page,))):
            self._client.log_artifact(self._run, str(file))
        status = {"finished": "FINISHED", "interrupted": "KILLED"}
        self._client.set_terminated(self._run, status.get(end.status, "FAILED"))

    def drop(self) -> None:
        """There is nothing to let go of."""


def _batches(things: list[Any], size: int) -> Iterable[list[Any]]:
    return (things[start : start + size] for start in range(0, len(things), size))


class Wandb:
    """A run beside the user's active one; offline unless WANDB_MODE says otherwise."""

    keeps_pages = True
    survives_kill = False  # it writes every 15 seconds
    open_runs = 0  # of all threads: the last that closes ends the library's process, if it was started here

    def __init__(self) -> None:
        self._library = load("wandb", extra="wandb")
        self._run: Any = None
        self._ours = False

    def begin(self, about: About, identity: str | None) -> str:
        """Begin a run of this identity; offline, W&B writes what is gone on with into a second folder of the same run."""
        said = os.environ.get("WANDB_MODE")
        name = identity or uuid.uuid4().hex[:8]
        self._ours = Wandb.open_runs > 0 or not _runs_already(self._library)
        Wandb.open_runs += 1
        self._run = self._library.init(
            mode=said or "offline",
            dir=str(about.folder),
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=about.group or None,
            name=about.name,
            id=name,
            resume="allow" if identity is not None and said not in (None, "offline") else None,
            config={key: _plain(value) for key, value in about.parameters.items()},
            reinit="create_new",  # the user's own run stays the active one
            settings=self._settings(),
        )
        self._run.define_metric("*", step_metric="trained_steps")
        return name

    def _settings(self) -> Any:
        """Return settings by which it looks at nothing but what it is told."""
        wanted = {
            "console": "off",
            "disable_git": True,
            "save_code": False,
            "silent": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
        }
        known = getattr(self._library.Settings, "model_fields", wanted)
        return self._library.Settings(**{key: value for key, value in wanted.items() if key in known})

    def kept(self) -> int | None:
        """All of them."""
        return None

    def row(self, row: Row, number: int) -> None:
        """Log one row of its own; its x axis is in it, since two rows may have the same."""
        self._run.log({**row.values, **row.texts, "trained_steps": row.at}, step=number)

    def end(self, end: End) -> None:
        """Show the page, and finish."""
        self._run.summary.update({"status": end.status, **end.summary})
        if end.page is not None:
            self._run.log({"report": self._library.Html(str(end.page), inject=False)})
        self._close(0 if end.status == "finished" else 1)

    def drop(self) -> None:
        """Finish, as far as possible."""
        if self._run is not None:
            self._close(1)

    def _close(self, code: int) -> None:
        run, self._run = self._run, None
        try:
            run.finish(exit_code=code)
        finally:
            Wandb.open_runs -= 1
            if self._ours and not Wandb.open_runs and self._library.run is None:
                self._library.teardown()  # or its process and its environment variable stay


def _runs_already(library: Any) -> bool:
    """Say whether the library's process is running: then somebody else uses it, and it is not ours to end."""
    return library.run is not None or "WANDB_SERVICE" in os.environ


class Trackio:
    """A run in Trackio's own local database, where `trackio show` looks, unless the environment names a Space or a server."""

    keeps_pages = True
    survives_kill = True

    def __init__(self) -> None:
        self._library = load("trackio", extra="trackio")
        self._run: Any = None
        self._given = 0

    def begin(self, about: About, identity: str | None) -> str:
        """Begin a run, or go on with the one of this name: Trackio finds runs by name, so part of the identity stands in it."""

        def init(identity: str, resume: str) -> Any:
            return self._library.init(
                project=PROJECT,
                name=f"{about.name}-{identity[:8]}",
                group=about.group or None,
                config={key: _plain(value) for key, value in about.parameters.items()},
                resume=resume,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

        if identity is not None:
            try:
                self._run = init(identity, "must")
                return identity
            except ValueError:
                pass  # its database is another, or was removed: all is told again
        identity = uuid.uuid4().hex
        self._run = init(identity, "never")
        return identity

    def kept(self) -> int | None:
        """Count them: it writes twice a second."""
        if self._run.url is not None:  # a Space or a server has them
            return None
        try:  # no public part of Trackio: a version without it is trusted
            storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
            return int(storage.get_log_count(self._run.project, self._run.name, run_id=self._run.id))
        except (ImportError, AttributeError, TypeError):
            return None

    def row(self, row: Row, number: int) -> None:
        """Log one row."""
        self._run.log({**row.values, **row.texts}, step=row.at)
        self._given = number + 1

    def end(self, end: End) -> None:
        """Show the page, finish, and count: Trackio goes on without a word to its caller when it cannot write."""
        if end.page is not None:
            self._run.log({"report": self._library.Html(Path(end.page), inject=False)})
        self._run.finish()
        kept = self.kept()
        if kept is not None and kept < self._given:
            raise OSError(f"it kept {kept} of {self._given} rows")

    def drop(self) -> None:
        """Finish, as far as possible."""
        if self._run is not None:
            self._run.finish()


BACKENDS: Mapping[str, Callable[[], Backend]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
    "trackio": Trackio,
}
