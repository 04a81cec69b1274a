"""Clusters of one machine, for as long as a block lasts: a Ray cluster of several nodes, a Slurm of one node with two places.

Slurm's and munge's daemons are started by hand, without systemd, with their own configuration, keys and folders under a temporary
folder; nothing of the machine's own configuration is read or changed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo")
PLACES = 2
CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={other_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={places} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=600 State=UP
"""


def why_no_slurm() -> str:
    """Return why there can be no Slurm here, or nothing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(missing)} (Debian's slurm-wlm and munge)" if missing else ""


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@contextlib.contextmanager
def slurm(home: Path, places: int = PLACES):
    """Run a Slurm of one node in a folder, and yield the environment in which its commands find it."""
    home = Path(home).absolute()
    for name in ("state", "spool"):
        (home / name).mkdir(parents=True)
    os.chmod(home, 0o755)
    (home / "munge.key").write_bytes(secrets.token_bytes(1024))
    os.chmod(home / "munge.key", 0o400)
    host = platform.node().partition(".")[0]
    said = CONFIGURATION.format(
        home=home, host=host, port=free_port(), other_port=free_port(), user=_user(), places=places
    )
    (home / "slurm.conf").write_text(said)
    around = {**os.environ, "SLURM_CONF": str(home / "slurm.conf"), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    daemons = []

    def start(*words):
        daemons.append(subprocess.Popen(words, env=around, stdout=log, stderr=log, start_new_session=True))

    with (home / "daemons.log").open("wb") as log:
        try:
            start(
                *("munged", "--foreground", "--force", f"--key-file={home}/munge.key", f"--socket={home}/munge.socket"),
                *(f"--pid-file={home}/munged.pid", f"--log-file={home}/munged.log", f"--seed-file={home}/munge.seed"),
            )
            _until(lambda: (home / "munge.socket").exists(), "munged", home)
            start("slurmctld", "-D", "-f", str(home / "slurm.conf"))
            start("slurmd", "-D", "-f", str(home / "slurm.conf"))
            _until(lambda: "idle" in _states(around), "a node of Slurm", home)
            yield around
        finally:
            subprocess.run(
                ["scancel", f"--user={os.getuid()}"], env=around, capture_output=True, timeout=60, check=False
            )
            with contextlib.suppress(TimeoutError):
                _until(lambda: not _jobs(around), "the end of its jobs", home)
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
            for daemon in daemons:
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def _user():
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _states(around):
    said = subprocess.run(
        ["sinfo", "--noheader", "--format=%t"], env=around, capture_output=True, text=True, check=False
    )
    return said.stdout.split()


def _jobs(around):
    said = subprocess.run(["squeue", "--noheader"], env=around, capture_output=True, text=True, check=False)
    return said.stdout.split()


def _until(true, what, home, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            logs = [file.read_text(errors="replace")[-1500:] for file in sorted(home.glob("*.log"))]
            raise TimeoutError(f"there is no {what} after {seconds} s:\n" + "\n".join(logs))
        time.sleep(0.2)


@contextlib.contextmanager
def ray_cluster(nodes: int = 2):
    """Run a Ray cluster of so many nodes with one core each on this machine, and yield its address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    given = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=given)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()
