"""All checks, one after the other. None stops the others, and none is waited for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from flows.doctor.exposure import exposure
from flows.doctor.finding import Finding, broken
from flows.doctor.kept import begun, leases, outboxes, store
from flows.doctor.machine import disk, gpu, packages, processor
from flows.doctor.servers import mlflow, prefect
from storage.receipts import scrubbed
from tasks.runtime import Runtime

# A request has 5 s; a folder on a server that is away may never answer.
PATIENCE_SECONDS = 30.0

Check = Callable[[Runtime], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    *(packages, processor, gpu, disk),
    *(store, leases, begun, outboxes),
    *(prefect, mlflow, exposure),
)


def examine(runtime: Runtime, *, checks: tuple[Check, ...] = CHECKS) -> Iterator[Finding]:
    """What all checks find, each as soon as it is done."""
    for check in checks:
        yield from _findings(check, runtime)


def _findings(check: Check, runtime: Runtime) -> list[Finding]:
    found: list[Finding] = []

    def look() -> None:
        try:
            found.extend(check(runtime))
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            for uri in (runtime.tracking_uri, runtime.prefect_api_url):
                said = scrubbed(said, uri=uri) if uri else said
            found.append(broken(_name(check), f"the check itself failed: {said[:300]}", "mend what it says"))

    thread = threading.Thread(target=look, daemon=True, name=f"graft-doctor-{check.__name__}")
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if not thread.is_alive():
        return found
    slow = f"no answer within {PATIENCE_SECONDS:.0f} s"
    return [*found, broken(_name(check), slow, "see whether a disk or a server that it needs hangs")]


def _name(check: Check) -> str:
    return check.__name__.replace("_", " ")
