"""A process that runs steps of a recipe and kills itself at a counted event of the store's write door.

It reads one JSON command a line and answers with one JSON line. Each command runs in a fork of this process, so that
what is slow to import is imported once:

    {"recipe": ..., "home": ..., "tracking": ..., "only": [...], "kill": null | {"event": 12, "when": "before"}}

`when` is `before` a write, `inside` it (half of the bytes are in the temporary file) or `after` it. The answer holds
the events that happened: the kind of each write, and its name.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import mlflow  # noqa: F401  (imported before the forks)
import torch

from flows.pipeline import RunRequest, open_pipeline
from models.training import loop
from storage.folder import TEMPORARY_PREFIX, FileRecord, Folder
from tasks.runtime import Runtime


def kind_of(path: Path, store: Path) -> str | None:
    """What a write of the store is: None for writes that are no part of an artifact in the making."""
    if not path.is_relative_to(store):
        return None
    parts = path.relative_to(store).parts
    if parts[0] == "artifacts":
        return "marker" if path.name == "marker.json" else "data"
    if parts[0] == "work" and "outbox" not in parts:
        return {"ledger": "ledger"}.get(parts[-2], {"checkpoint.pt": "checkpoint"}.get(path.name))
    return None


class Door:
    """Counts the writes of the store, writes them down, and kills the process at one of them."""

    def __init__(self, store: Path, kill: dict[str, Any] | None, log: Path) -> None:
        self._store = store
        self._kill = kill
        self._log = log.open("a", buffering=1)
        self._count = 0
        self._write = Folder.write

    def install(self) -> None:
        door = self

        def write(self: Folder, name: str, data: bytes | memoryview) -> FileRecord:
            return door.write(self, name, data)

        Folder.write = write
        step = loop._step

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.note("step", "")
            return step(*args, **kwargs)

        loop._step = counted

    def note(self, kind: str, name: str) -> None:
        self._log.write(json.dumps([kind, name]) + "\n")

    def write(self, folder: Folder, name: str, data: bytes | memoryview) -> FileRecord:
        kind = kind_of(folder.path / name, self._store)
        if kind is None:
            return self._write(folder, name, data)
        number, self._count = self._count, self._count + 1
        when = self._kill["when"] if self._kill and self._kill["event"] == number else None
        if when == "before":
            die()
        if when == "inside":
            (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
            (folder.path / name).with_name(f"{TEMPORARY_PREFIX}half").write_bytes(bytes(data)[: len(data) // 2])
            die()
        record = self._write(folder, name, data)
        self.note(kind, name)
        if when == "after":
            die()
        return record


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(command: dict[str, Any], log: Path) -> None:
    torch.set_num_threads(1)
    runtime = Runtime(
        home=command["home"], tracking_uri=command["tracking"], workers=0, batch_rows=16, checkpoint_seconds=0
    )
    Door(runtime.store_root, command["kill"], log).install()
    request = RunRequest(recipe=command["recipe"], only=frozenset(command["only"]))
    open_pipeline(request, runtime=runtime).run()


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        log = Path(command["log"])
        log.write_text("")
        pid = os.fork()
        if pid == 0:
            try:
                run(command, log)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        events = [json.loads(row) for row in log.read_text().splitlines()]
        sys.stdout.write(json.dumps({"status": os.waitstatus_to_exitcode(status), "events": events}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
