"""Every tracker shows what the run's records say, value by value; read back from its own files."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import readers

from incop.rundir import RunDir

ALL = ("tensorboard", "mlflow", "wandb", "trackio")
QUICK = ["--method", "incop-if", "--max-epochs", "2", "--levels", "2", "--limit", "200", "--check-every", "0.5"]

pytestmark = pytest.mark.timeout(900)


def process(*words, home, **env):
    """Run Python in a process of its own, with Trackio's folder in a place of its own."""
    around = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW", "TRACKIO"))}
    around |= {"TRACKIO_DIR": str(home), "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **env}
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=around, timeout=800, check=False
    )


def incop(*words, home, **env):
    patient = "import sys; from incop.integrations.trackers import tracker; from incop.cli import main; tracker.PATIENCE = 600"
    return process("-c", f"{patient}; sys.exit(main(sys.argv[1:]))", *words, home=home, **env)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that all trackers were told of, and Trackio's folder."""
    folder = tmp_path_factory.mktemp("tracked")
    ended = incop("search", *QUICK, "--track", ",".join(ALL), "--out", folder / "R", home=folder / "home")
    assert ended.returncode == 0, ended.stderr
    assert "failed" not in ended.stderr
    return folder / "R", folder / "home"


def read(name, folder, home):
    return readers.trackio(folder, home) if name == "trackio" else getattr(readers, name)(folder)


def expected(folder, *, times=True):
    """What the records say, as a tracker should hold it: made from the lines of JSON, by hand."""
    lines = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("checks", "levels")
    }
    series, before = {}, dict.fromkeys(lines["checks"][0]["spent"], 0)

    def put(name, at, value):
        if value is not None and (times or "seconds" not in name):
            series.setdefault(name, []).append((at, value))

    for level in lines["levels"]:
        for check in (c for c in lines["checks"] if c["level"] == level["level"]):
            at = before["steps"] + check["spent"]["steps"]
            for pair, value in check["flow"]["values"].items():
                put(f"flow/{pair.replace('->', '-to-')}", at, value)
            for name in ("distance", "accuracy", "loss", "sparsity", "level"):
                put(name, at, check[name])
            for name, value in check["spent"].items():
                put(f"spent/{name}", at, before[name] + value)
            put("stop", at, float(check["verdict"]["stop"]))
            put("verdict", at, check["verdict"]["reason"])
        before = {name: before[name] + level[name] for name in before}
        for name in ("sparsity", "model_sparsity", "val_accuracy", "test_accuracy", "epochs", "stop_reason"):
            put(f"level/{name}", before["steps"], level[name])
    return series


def agree(name, found, wanted):
    """Hold series against each other; TensorBoard keeps numbers in float32, MLflow draws no texts."""
    for key, points in wanted.items():
        if name == "mlflow" and isinstance(points[0][1], str):
            continue
        told = points
        if name == "tensorboard":
            told = [(at, v if isinstance(v, str) else float(np.float32(v))) for at, v in points]
        same = [x == pytest.approx(y, rel=1e-12) if not isinstance(y, str) else x == y for (_, x), (_, y) in
                zip(found[key], told, strict=True)]  # fmt: skip
        assert [at for at, _ in found[key]] == [at for at, _ in told], key
        assert all(same), (key, found[key], told)


@pytest.mark.parametrize("name", ALL)
def test_a_tracker_holds_what_the_records_say(name, run):
    wanted = expected(run[0])
    assert {"flow/fc1-to-fc2", "distance", "accuracy", "spent/samples", "level/test_accuracy"} <= set(wanted)
    agree(name, read(name, *run), wanted)


def test_mlflow_holds_plan_records_page_status_and_reasons(run):
    client, found = readers.mlflow_run(run[0])
    plan = RunDir(run[0]).read_plan()
    assert found.data.params == {key: str(value) for key, value in plan.items()}
    kept = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert kept == {"plan.toml", "levels.jsonl", "checks.jsonl", "summary.json", "report.html"}
    assert found.info.status == "FINISHED"
    levels = RunDir(run[0]).levels()
    assert found.data.tags["level.stop_reason"] == levels[-1].stop_reason
    assert found.data.tags["verdict"] == RunDir(run[0]).checks()[-1].verdict.reason
    assert client.get_experiment(found.info.experiment_id).name == "incop"


def test_wandb_holds_plan_page_and_summary(run):
    (file,) = (run[0] / "trackers" / "wandb").glob("offline-run-*/run-*.wandb")
    records = list(readers.wandb_records(file))
    config = {
        item.key: json.loads(item.value_json) for record in records for item in record.run.config.update if item.key
    }
    assert {key: config[key] for key in ("method", "levels")} == {"method": "incop-if", "levels": 2}
    pages = list(file.parent.glob("files/media/html/*.html"))
    assert [page.read_text() for page in pages] == [(run[0] / "report.html").read_text()]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def test_trackio_and_tensorboard_hold_the_plan(run):
    import sqlite3

    with sqlite3.connect(run[1] / "incop.db") as base:
        (config,) = base.execute("SELECT config FROM configs").fetchone()
    assert json.loads(config)["method"] == "incop-if"
    found = readers.tensorboard(run[0])
    assert "| method | incop-if |" in found["plan"][0][1]
    assert found["status"][0][1] == "finished"


KILLED = """
import os, signal, sys, time
from incop.cli.tracking import tracked
from incop.experiments import runs
from incop.experiments.preparation import resolve
from incop.experiments.plan import Plan
from incop.integrations.trackers import tracker
from pathlib import Path

folder, names, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
told = []

def on_step(*at):
    told.append(at)
    if len(told) == steps:
        rows = len((folder / "checks.jsonl").read_text().splitlines() + (folder / "levels.jsonl").read_text().splitlines())
        until = time.monotonic() + 100
        files = [folder / "trackers" / f"{name}.jsonl" for name in names.split(",")]
        while not all(f.exists() and len(f.read_text().splitlines()) > rows for f in files):
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(os.getpid(), getattr(signal, sys.argv[4]))

tracker.PATIENCE = 600
plan = resolve(Plan(method="incop-if", max_epochs=2.0, levels=2, limit=200, check_every="0.5", checkpoint_every="6steps"))
runs.execute(plan, folder, tracked(runs.Progress(on_step=on_step), names))
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    killed = process("-c", KILLED, folder / "R", ",".join(ALL), 20, "SIGKILL", home=folder / "home")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = RunDir(folder / "R").checks()
    ended = incop("resume", folder / "R", "--track", ",".join(ALL), home=folder / "home")
    assert ended.returncode == 0, ended.stderr
    assert "failed" not in ended.stderr
    return folder / "R", folder / "home", before


def test_checks_were_made_again(resumed):
    """Or the tests below prove nothing."""
    folder, _, before = resumed
    now = {(c.level, c.number): c for c in RunDir(folder).checks()}
    assert any(now[c.level, c.number].spent.seconds != c.spent.seconds for c in before)


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_was_killed_and_gone_on_with_is_one_run_without_anything_twice(name, resumed):
    folder, home, _ = resumed
    agree(name, read(name, folder, home), expected(folder, times=False))


def test_the_resumed_run_is_the_same_run_where_the_tracker_had_written_all(resumed):
    client, found = readers.mlflow_run(resumed[0])
    assert len(client.search_runs([found.info.experiment_id])) == 1
    assert len(readers.wandb_files(resumed[0])) == 1  # W&B had not: a second run has it all


def test_an_interrupted_run_goes_on_in_wandb_under_the_same_identity(tmp_path):
    ended = process("-c", KILLED, tmp_path / "R", "wandb", 20, "SIGTERM", home=tmp_path)
    assert "Interrupted" in ended.stderr
    ended = incop("resume", tmp_path / "R", "--track", "wandb", home=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert len(readers.wandb_files(tmp_path / "R")) == 2
    agree("wandb", readers.wandb(tmp_path / "R"), expected(tmp_path / "R"))


def test_runs_of_a_comparison_are_grouped(tmp_path):
    words = [
        "--methods",
        "lth",
        "--no-controls",
        "--seeds",
        "2",
        "--sparsities",
        "0.3",
        "--limit",
        "200",
        "--jobs",
        "2",
    ]
    words += ["--max-epochs", "1", "--track", "tensorboard,mlflow", "--out", tmp_path / "many"]
    ended = incop("compare", *words, home=tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert "failed" not in ended.stderr
    folders = sorted((tmp_path / "many" / "runs").iterdir())
    assert len(folders) == 4
    for folder in folders:
        client, found = readers.mlflow_run(folder, tmp_path / "many" / "trackers")
        assert found.data.tags["incop.group"] == "many"
        assert client.get_experiment(found.info.experiment_id).name == "many"
        assert readers.tensorboard(folder)["level/sparsity"]
    assert len(client.search_runs([found.info.experiment_id])) == 4


SEARCH = """
import importlib, json, os, resource, sys, threading
import torch, incop
from incop.integrations import trackers
from incop.integrations.trackers import tracker

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()

def search(hook=None):
    tracker.PATIENCE = 600  # tests run where others work too
    torch.manual_seed(0)
    x, y = torch.randn(60, 8), torch.randint(2, (60,))
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    trainer = incop.Trainer((x, y), (x, y), epochs=2, batch_size=30)
    found = []
    for ticket in incop.search(net, trainer, levels=6, on_check=hook and hook.check):
        if hook:
            hook.level(ticket.record)
        found.append({k: v for k, v in ticket.record.to_json().items() if "seconds" not in k})
        found.append({k: w.double().sum().item() for k, w in ticket.weights.items()})
    return found
"""


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_left_behind(name, tmp_path):
    code = """
search()  # torch itself sets a variable at its first optimizer
names = set(t.name for t in threading.enumerate())
before = dict(os.environ)
with trackers.track(sys.argv[1], sys.argv[2]) as hook:
    search(hook)
left = {t.name for t in threading.enumerate()} - names
assert not {n for n in left if n.startswith("incop") or "Service" in n}, left
assert dict(os.environ) == before, {k: v for k, v in os.environ.items() if before.get(k) != v}
assert children() == []
if sys.argv[1] == "mlflow":
    import mlflow
    assert mlflow.active_run() is None and not mlflow.is_tracking_uri_set()
"""
    ended = process("-c", SEARCH + code, name, tmp_path / "t", home=tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert "failed" not in ended.stderr


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_the_users_own_run_stays_as_it_is(name, tmp_path):
    code = """
import mlflow, trackio, wandb
name, folder = sys.argv[1:]
if name == "mlflow":
    mlflow.set_tracking_uri(f"sqlite:///{folder}/own.db")
    mine = mlflow.start_run()
elif name == "wandb":
    mine = wandb.init(mode="offline", dir=folder, project="own")
else:
    mine = trackio.init(project="own", embed=False)
with trackers.track(name, folder + "/t") as hook:
    search(hook)
if name == "mlflow":
    assert mlflow.active_run().info.run_id == mine.info.run_id
    mlflow.log_metric("own", 1.0)
    assert set(mlflow.get_run(mine.info.run_id).data.metrics) == {"own"}
elif name == "wandb":
    assert wandb.run is mine
    wandb.log({"own": 1})
    assert dict(wandb.run.summary).keys() <= {"own", "_step", "_runtime", "_timestamp"}, dict(wandb.run.summary)
    wandb.finish()
else:
    from trackio import context_vars
    assert context_vars.current_run.get() is mine
    trackio.log({"own": 1})
    trackio.finish()
"""
    (tmp_path / "w").mkdir()
    ended = process("-c", SEARCH + code, name, tmp_path / "w", home=tmp_path / "home")
    assert ended.returncode == 0, ended.stderr
    assert "failed" not in ended.stderr


BROKEN = """
name, folder, hows = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
alone, told = search(), {}

def fails(*args, **kwargs):
    raise OSError("broken on purpose")

def tracked(how):
    told[how] = []
    with trackers.track(name, f"{folder}-{how}", on_notice=told[how].append) as hook:
        assert search(hook) == alone, how

for how in hows:
    if how == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    elif how == "file":
        open(f"{folder}-file", "w").close()
    elif ":" in how:
        module, kind, method = how.split(":")
        thing = getattr(importlib.import_module(module), kind)
        before = getattr(thing, method)
        setattr(thing, method, fails)
        tracked(how)
        setattr(thing, method, before)
        continue
    tracked(how)
print(json.dumps(told))
"""
RAISING = {
    "tensorboard": [
        f"torch.utils.tensorboard:SummaryWriter:{method}" for method in ("__init__", "add_scalar", "close")
    ],
    "mlflow": [f"mlflow:MlflowClient:{method}" for method in ("create_run", "log_batch", "set_terminated")],
    "wandb": [f"wandb.sdk.wandb_run:Run:{method}" for method in ("define_metric", "log", "finish")],
    "trackio": [f"trackio.run:Run:{method}" for method in ("__init__", "log", "finish")],
}


def broken(name, *hows, folder, **env):
    """Search with a tracker that is broken in several ways, each time as without one; return what was told of each."""
    ended = process("-c", SEARCH + BROKEN, name, folder / "t", ",".join(hows), home=folder / "home", **env)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ALL)
def test_a_tracker_that_is_broken_does_not_change_a_search_and_is_told_once(name, tmp_path):
    """Its library raises at the beginning, at a row or at the end; its folder is a file; the disk is full."""
    told = broken(name, *RAISING[name], "file", "full", folder=tmp_path)
    assert len(told) == 5
    for how, sentences in told.items():
        assert len(sentences) == 1, (how, sentences)
        assert f"the tracker {name!r} failed and is left alone" in sentences[0]
        assert ("broken on purpose" in sentences[0]) == (":" in how)


def test_a_server_that_is_gone_is_told_once(tmp_path):
    gone = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    (sentences,) = broken("mlflow", "gone", folder=tmp_path, **gone).values()
    assert len(sentences) == 1
    assert "'mlflow' failed" in sentences[0]


def test_the_users_settings_go_before_ours(tmp_path):
    store = f"sqlite:///{tmp_path / 'own.db'}"
    assert broken("mlflow", "set", folder=tmp_path, MLFLOW_TRACKING_URI=store) == {"set": []}
    assert (tmp_path / "own.db").exists()
    assert not (tmp_path / "t-set" / "mlflow.db").exists()
    assert broken("wandb", "off", folder=tmp_path, WANDB_MODE="disabled") == {"off": []}
    assert not list((tmp_path / "t-off").glob("wandb/offline-run-*"))
