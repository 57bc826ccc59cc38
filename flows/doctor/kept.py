"""What is kept: the store itself, and what was begun and left."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

from flows.doctor.finding import Finding, broken, look, ok
from flows.pipeline import open_store, tracking
from storage.folder import Folder
from storage.lease import FileLease, Lease, leased_names
from storage.outbox import Outbox
from tasks.runtime import Runtime

AGAIN = "run the recipe again: it goes on from what is kept"
# As many are named.
NAMED = 3


def store(runtime: Runtime) -> Iterator[Finding]:
    """Write a file into the store, read it back, and remove it."""
    kept = open_store(runtime)
    name, content = f"doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        kept.folder.write(name, content)
        found = kept.folder.read(name)
        kept.folder.remove(name)
    except OSError as error:
        yield broken("store", str(error), f"make {kept.folder} writable, or set GRAFT_STORE")
        return
    if found != content:
        yield broken("store", f"{kept.folder} gives other bytes back than were written", "check its disk")
        return
    artifacts = len((kept.folder / "artifacts").folders())
    yield ok("store", f"{kept.folder} can be written and read; {artifacts} artifacts")


def leases(runtime: Runtime) -> Iterator[Finding]:
    """Who makes what, and who has died over it."""
    known = _leases(runtime)
    dead = sorted(name for name, lease in known.items() if lease.is_left())
    held = sum(lease.is_taken() for lease in known.values())
    if dead:
        yield look("leases", f"{len(dead)} of processes that are gone: {_some(dead)}", AGAIN)
    else:
        yield ok("leases", f"{held} held, by processes that live" if held else "none")


def begun(runtime: Runtime) -> Iterator[Finding]:
    """Steps that were begun, are not finished, and nobody is at."""
    kept = open_store(runtime)
    left = [key for key in kept.begun() if not kept.lease(key).is_taken()]
    if not left:
        yield ok("begun work", "none is left over")
        return
    names = []
    for key in left:
        record = Outbox(kept.work_folder(key) / "outbox").record()
        names.append(f"{record.name if record else 'a step'} {key[:12]}")
    yield look("begun work", f"{len(left)} steps are begun and left: {_some(names)}", AGAIN)


def outboxes(runtime: Runtime) -> Iterator[Finding]:
    """What MLflow does not have yet, of runs that nobody is at."""
    mlflow, kept = tracking(runtime), open_store(runtime)
    pipelines = Folder(runtime.home.absolute() / "pipelines")
    begun = {key: kept.work_folder(key) / "outbox" for key in kept.begun()}
    begun |= {uid: pipelines / uid for uid in pipelines.folders()}
    held = {name for name, lease in _leases(runtime).items() if lease.is_taken()}
    idle = [Outbox(folder) for name, folder in begun.items() if name not in held]
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


def _leases(runtime: Runtime) -> dict[str, Lease]:
    """Those of the store, and those of pipelines, which are this home's own."""
    pipelines = Folder(runtime.home.absolute() / "leases")
    return open_store(runtime).leases() | {name: FileLease(pipelines, name) for name in leased_names(pipelines)}


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - NAMED
    shown = [name if len(name) < 64 else name[:12] for name in listed[:NAMED]]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
