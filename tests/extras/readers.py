"""What each tracker holds of a run, read back from its own files: {name: [(x, value), …]} in the order told."""

import json
import sqlite3
import struct
from collections import defaultdict
from pathlib import Path


def tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    for name in events.Tags()["tensors"]:
        found[name.removesuffix("/text_summary")] = [
            (e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(name)
        ]
    return found


def mlflow(folder, store=None):
    client, run = mlflow_run(folder, store)
    return {
        name: [
            (m.step, m.value) for m in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)
        ]
        for name in run.data.metrics
    }


def mlflow_run(folder, store=None):
    from mlflow import MlflowClient

    store = folder / "trackers" if store is None else store
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    told = json.loads((folder / "trackers" / "mlflow.jsonl").read_text().splitlines()[0])
    return client, client.get_run(told["id"])


def trackio(folder, home):
    told = json.loads((folder / "trackers" / "trackio.jsonl").read_text().splitlines()[0])
    found = defaultdict(list)
    with sqlite3.connect(home / "incop.db") as base:
        name = f"{folder.name}-{told['id'][:8]}"
        rows = base.execute("SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", (name,)).fetchall()
    for step, metrics in rows:
        for key, value in json.loads(metrics).items():
            found[key].append((step, value))
    return dict(found)


def wandb(folder):
    """Rows of all folders of the run, each once by W&B's own number of the row."""
    rows = {}
    for file in wandb_files(folder):
        for record in wandb_records(file):
            if record.HasField("history"):
                row = {
                    (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
                }
                number = row.pop("_step")
                assert number not in rows, "a row was told twice"
                rows[number] = row
    found = defaultdict(list)
    for _, row in sorted(rows.items()):
        for key, value in row.items():
            if not key.startswith("_"):
                found[key].append((row.get("trained_steps"), value))
    return dict(found)


def wandb_files(folder):
    told = json.loads((folder / "trackers" / "wandb.jsonl").read_text().splitlines()[0])
    return sorted((folder / "trackers" / "wandb").glob(f"offline-run-*/run-{told['id']}.wandb"))


def wandb_records(file):
    """Read a W&B file: a header of seven bytes, then blocks of 32 KiB with records (checksum, length, type, content)."""
    from wandb.proto import wandb_internal_pb2

    content = Path(file).read_bytes()
    assert content[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
