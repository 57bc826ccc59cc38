"""What is kept: the store itself, and what was begun and left."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from flows.doctor.finding import Finding, broken, look, ok
from flows.pipeline import tracking
from storage.folder import Folder
from storage.lease import holders
from storage.outbox import Outbox
from tasks.runtime import Runtime

AGAIN = "run the recipe again: it goes on from what is kept"
# As many are named.
NAMED = 3


def store(runtime: Runtime) -> Iterator[Finding]:
    """Write a file into the store, read it back, and remove it."""
    folder = Folder(runtime.store_root)
    name, content = f"doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        folder.write(name, content)
        kept = folder.read(name)
        folder.remove(name)
    except OSError as error:
        yield broken("store", str(error), f"make {runtime.store_root} writable, or set GRAFT_STORE")
        return
    if kept != content:
        yield broken("store", f"{folder.path} gives other bytes back than were written", "check its disk")
        return
    artifacts = sum(1 for _ in _folders(folder.path / "artifacts"))
    yield ok("store", f"{folder.path} can be written and read; {artifacts} artifacts")


def leases(runtime: Runtime) -> Iterator[Finding]:
    """Who makes what, and who has died over it."""
    alive = holders(Folder(runtime.store_root / "leases")) | holders(Folder(runtime.home.absolute() / "leases"))
    dead = sorted(name for name, lives in alive.items() if not lives)
    if dead:
        yield look("leases", f"{len(dead)} of processes that are gone: {_some(dead)}", AGAIN)
    else:
        yield ok("leases", f"{len(alive)} held, by processes that live" if alive else "none")


def begun(runtime: Runtime) -> Iterator[Finding]:
    """Steps that were begun, are not finished, and nobody is at."""
    alive = holders(Folder(runtime.store_root / "leases"))
    left = [folder for folder in _folders(runtime.store_root / "work") if not alive.get(folder.name)]
    if not left:
        yield ok("begun work", "none is left over")
        return
    names = []
    for folder in left:
        record = Outbox(Folder(folder / "outbox")).record()
        names.append(f"{record.name if record else 'a step'} {folder.name[:12]}")
    yield look("begun work", f"{len(left)} steps are begun and left: {_some(names)}", AGAIN)


def outboxes(runtime: Runtime) -> Iterator[Finding]:
    """What MLflow does not have yet, of runs that nobody is at."""
    mlflow = tracking(runtime)
    stages = [(folder.name, folder / "outbox") for folder in _folders(runtime.store_root / "work")]
    pipelines = [(folder.name, folder) for folder in _folders(runtime.home.absolute() / "pipelines")]
    alive = holders(Folder(runtime.store_root / "leases")) | holders(Folder(runtime.home.absolute() / "leases"))
    idle = [Outbox(Folder(folder)) for name, folder in [*stages, *pipelines] if not alive.get(name)]
    waiting = [
        f"{record.name} of {record.experiment}"
        for outbox in idle
        if (record := outbox.record()) and not mlflow.receipts.is_complete(outbox, parent=None)
    ]
    if waiting:
        remedy = f"the next graft run sends it, once MLflow answers at {mlflow.uri}"
        yield look("records for MLflow", f"{len(waiting)} runs are not sent in full: {_some(waiting)}", remedy)
    else:
        yield ok("records for MLflow", "nothing waits to be sent")


def _folders(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from sorted(path for path in place.iterdir() if path.is_dir())


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - NAMED
    shown = [name if len(name) < 64 else name[:12] for name in listed[:NAMED]]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
