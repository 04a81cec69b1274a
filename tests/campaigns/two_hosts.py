"""One search over two hosts, stood in for by two network namespaces joined by a virtual cable, also when the cable is pulled.

    sudo python tests/campaigns/two_hosts.py [RESULT.md]        a minute or two; needs root, `ip` and `unshare`

Each namespace has its own interface, address, host name and loopback, and reaches the other over the cable only; the run folder is
in the first one's working directory. Three searches: one undisturbed; one in which the cable is pulled in the middle, which both
must notice and tell; and that one gone on with after the cable is back, which must end with the first one's records, to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from kill_campaign import content

import incop

CABLE = "10.77.0"
HOSTS = ("incop-a", "incop-b")
PATIENCE = 20  # seconds that a process waits for the others
WORDS = ["--data", "digits", "--model", "lenet-5", "--method", "incop-if", "--levels", "3", "--limit", "400"]
WORDS += ["--max-epochs", "6", "--device", "cpu", "--checkpoint-every", "5steps"]


def run(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts():
    """Make two namespaces and the cable between them."""
    for host in HOSTS:
        run("ip", "netns", "del", host, check=False)
    try:
        for host in HOSTS:
            run("ip", "netns", "add", host)
        run(
            "ip",
            "link",
            "add",
            "cable-a",
            "netns",
            HOSTS[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable-b",
            "netns",
            HOSTS[1],
        )
        for number, host in enumerate(HOSTS, 1):
            end = f"cable-{host[-1]}"
            run("ip", "-n", host, "addr", "add", f"{CABLE}.{number}/24", "dev", end)
            run("ip", "-n", host, "link", "set", end, "up")
            run("ip", "-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in HOSTS:
            run("ip", "netns", "del", host, check=False)


def started(folders, port, *words):
    """Start torchrun on both hosts; each has its own working directory."""
    processes = []
    for number, host in enumerate(HOSTS):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)]
        launch += [
            "--nproc-per-node",
            "1",
            "--master-addr",
            f"{CABLE}.1",
            "--master-port",
            str(port),
            "-m",
            "incop",
            *words,
        ]
        inside = 'hostname "$0"; exec "$@"'
        command = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", inside, host, *launch]
        settings = {
            "GLOO_SOCKET_IFNAME": f"cable-{host[-1]}",
            "INCOP_RANK_TIMEOUT": str(PATIENCE),
            "OMP_NUM_THREADS": "1",
        }
        with (folders[number] / "said").open("w") as said, (folders[number] / "shown").open("w") as shown:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=folders[number],
                    env={**os.environ, **settings},
                    stdout=shown,
                    stderr=said,
                    start_new_session=True,
                )
            )
    return processes


def ended(processes, within):
    end = time.monotonic() + within
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0.1))
    hanging = [process for process in processes if process.poll() is None]
    for process in hanging:
        os.killpg(process.pid, 9)
        process.wait()
    return [process.returncode for process in processes], bool(hanging)


def sentences(folder):
    return [line for line in (folder / "said").read_text().splitlines() if line.startswith("incop: ")]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("result", nargs="?", type=Path)
    result = options.parse_args().result
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare")):
        sys.exit("this needs root, `ip` (iproute2) and `unshare` (util-linux): namespaces cannot be made otherwise")
    home = Path(tempfile.mkdtemp())
    folders = [home / host for host in HOSTS]
    for folder in folders:
        folder.mkdir()
    with two_hosts():
        begun = time.monotonic()
        statuses, hung = ended(started(folders, 29511, "search", *WORDS, "--out", "whole"), 600)
        took = time.monotonic() - begun
        assert statuses == [0, 0], [sentences(folder) for folder in folders]
        told = (folders[0] / "shown").read_text()

        processes = started(folders, 29512, "search", *WORDS, "--out", "pulled")
        while not list(folders[0].glob("pulled/checkpoint/00*")) and processes[0].poll() is None:
            time.sleep(0.01)
        run("ip", "-n", HOSTS[0], "link", "set", "cable-a", "down")
        pulled = time.monotonic()
        statuses, hung = ended(processes, 600)
        noticed = time.monotonic() - pulled
        said = [sentences(folder) for folder in folders]
        held = not hung and all(statuses) and all(len(one) == 1 for one in said)
        summary = incop.rundir.RunDir(folders[0] / "pulled").read_summary()

        run("ip", "-n", HOSTS[0], "link", "set", "cable-a", "up")
        resumed, hung = ended(started(folders, 29513, "resume", "pulled"), 600)
        same = resumed == [0, 0] and content(folders[0] / "pulled") == content(folders[0] / "whole")
        environment = incop.rundir.RunDir(folders[0] / "whole").read_summary().environment
    lines = [
        "# One search over two hosts with addresses of their own",
        "",
        f"`python tests/campaigns/two_hosts.py` · incop {incop.__version__} · torch {torch.__version__} · {platform.machine()}, "
        f"{os.cpu_count()} cores shared by both hosts, one thread each",
        "",
        f"Two network namespaces, {CABLE}.1 and {CABLE}.2, joined by a veth pair; torchrun on each, one process a host (gloo); "
        f"`incop search {' '.join(WORDS)}`; INCOP_RANK_TIMEOUT={PATIENCE}.",
        "",
        f"- **Undisturbed**: {took:.1f} s with the start of Python and torch. Hosts in its record: "
        f"{', '.join(environment['hosts'])}. Nothing was written on the second host: "
        f"{'true' if not (folders[1] / 'whole').exists() else 'FALSE'}.",
        f"- **Cable pulled** in the middle: both ended by themselves after {noticed:.0f} s, with exit statuses {statuses} and one "
        f"sentence each: {'yes' if held else 'NO'}. The first one's:",
        "",
        *(f"  > {line}" for line in said[0]),
        "",
        "  and the second one's:",
        "",
        *(f"  > {line}" for line in said[1]),
        "",
        f"  `summary.json` then says: {summary.status}.",
        "- **Cable back and resumed** on both: the records, weights and masks of the undisturbed run, to the bit: "
        f"{'yes' if same else 'NO'}.",
        "",
        "What the undisturbed one showed:",
        "",
        "```",
        told.strip(),
        "```",
    ]
    print("\n".join(lines))
    if result is not None:
        result.write_text("\n".join(lines) + "\n")
    return 0 if held and same else 1


if __name__ == "__main__":
    import incop.rundir

    sys.exit(main())
