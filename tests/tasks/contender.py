"""A process that wants one artifact: makes it, waits for it, or stops on the way where it is told to.

    contender.py FOLDER LEASE_SECONDS none|before-unit-1|before-commit

Each unit that it computes is noted as an empty file FOLDER/computed/UNIT-PID. Where it is told to stop, it
makes the file FOLDER/stopped and goes on when there is a file FOLDER/go. It prints what it got, or its error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from storage.artifact import Artifact
from storage.store import Store
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Work, run_stage, stage

FOLDER, LEASE_SECONDS, STOP = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
UNITS = 3


class Rows(Artifact):
    kind = "Rows"


class RowsConfig(BaseModel, frozen=True, extra="forbid"):
    units: int = UNITS


@stage(produces=Rows, version=1)
def write_rows(config: RowsConfig, work: Work) -> None:
    for unit in range(config.units):
        if str(unit) in work.ledger:
            continue
        if unit == 1 and STOP == "before-unit-1":
            stand()
        (FOLDER / "computed" / f"{unit}-{os.getpid()}").touch()
        # Long enough that all others come while this one is at it.
        time.sleep(0.2)
        work.commit(str(unit), records=[work.data.write(f"{unit}.txt", f"row {unit}".encode())])
    if STOP == "before-commit":
        stand()


def stand() -> None:
    (FOLDER / "stopped").touch()
    while not (FOLDER / "go").exists():
        time.sleep(0.02)


def main() -> None:
    # GRAFT_STORE may name an object store.
    runtime = Runtime(home=FOLDER / "home", device="cpu", lease_seconds=LEASE_SECONDS)
    store = Store(runtime.store_root, lease_seconds=runtime.lease_seconds, cache=runtime.read_cache)
    context = Context(runtime, store, NoRecorder(), Silent())
    try:
        result = run_stage(write_rows, RowsConfig(), inputs={}, context=context)
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    else:
        answer = {"digest": result.artifact.digest, "key": result.artifact.key, "reused": result.reused}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
