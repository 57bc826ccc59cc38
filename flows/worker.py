"""A worker on this machine that tells its runs when it is to stop: each keeps a checkpoint, and ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import Any, NoReturn

import psutil

from flows.deploy import POOL

# Kubernetes kills after 30 s.
CHECKPOINT_SECONDS = 25.0
STOP_SECONDS = 5.0


def run_worker() -> int:
    """Run what the deployments ask for until this process is told to stop; gives the worker's exit code."""
    command = [
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", socket.gethostname()),
        *("--install-policy", "never", "--no-create-pool-if-not-found", "--with-healthcheck"),
    ]
    worker = psutil.Popen(command)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return int(worker.wait())
    finally:
        _stop_runs(worker)
        _end(worker)


def _stop(number: int, _frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def _stop_runs(worker: psutil.Popen) -> None:
    """Told to stop, a worker leaves its runs alone, each in a session of its own: they would go on without it."""
    try:
        runs = worker.children()
    except psutil.NoSuchProcess:
        return
    for run in runs:
        try:
            run.terminate()
        except psutil.NoSuchProcess:
            continue
    _, deaf = psutil.wait_procs(runs, timeout=CHECKPOINT_SECONDS)
    for run in deaf:
        os.killpg(run.pid, signal.SIGKILL)


def _end(worker: psutil.Popen) -> None:
    if worker.poll() is not None:
        return
    worker.terminate()
    try:
        worker.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        worker.kill()
        worker.wait()


if __name__ == "__main__":
    sys.exit(run_worker())
