"""Starts the body of a stage on several ranks, watches them, and stops them.

The process that runs a step holds its lease, tells MLflow and Prefect of it, and commits it. The ranks are processes of
their own, which run `tasks.one_rank`: torchrun starts them on this machine, Ray (`tasks.ray_ranks`) on those of its
cluster. All that the two sides say to each other lies in the step's work folder: shards and checkpoints, metrics,
progress, and a last word of each rank.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel

from storage.errors import CorruptFile, LeaseLost, StoreUnwritable
from storage.folder import Folder
from storage.lease import Lease
from storage.ledger import Ledger
from tasks.recording import StageRecord
from tasks.runtime import Runtime

if TYPE_CHECKING:
    from tasks.stage import Lookup, Work

LOOK_SECONDS = 1.0
# For a step of training and its checkpoint, within the 30 s that orchestrators leave a process to end.
STOP_SECONDS = 20.0
# Where the last words lie, in a work's state.
WORDS = "ranks"
# Errors that callers tell apart; what a rank says of them is raised as one of them here.
ERRORS: tuple[type[Exception], ...] = (CorruptFile, LeaseLost, StoreUnwritable, ValueError, OSError)


class RankLost(RuntimeError):
    """A rank ended before its work did."""


class Order(BaseModel, frozen=True, extra="forbid"):
    """All that a rank is told: enough for a machine that sees nothing but the store and the data.

    Attributes:
        stage: MODULE:NAME.
        config: MODULE:NAME of its class, and its values.
        inputs: argument of the body -> MODULE:NAME of the artifact's class, and its URI.
        token: of the lease.
        parent: id of the process that holds the lease.
    """

    stage: str
    step: str
    key: str
    config: tuple[str, dict[str, Any]]
    inputs: dict[str, tuple[str, str]]
    runtime: dict[str, Any]
    token: str
    parent: int


class Word(BaseModel, frozen=True, extra="forbid"):
    """The last word of a rank.

    Attributes:
        error: name of one of ERRORS, or "" for any other; None when it was no error that ended it.
        metrics: the last value of each metric.
    """

    end: Literal["done", "stopped", "failed"]
    error: str = ""
    message: str = ""
    metrics: dict[str, float] = {}


class Ranks(Protocol):
    """Ranks under way.

    Attributes:
        trace: where to look for what they print.
    """

    trace: str

    def ended(self, *, seconds: float) -> bool:
        """Whether all have ended; waits that long for it."""


def run_on_ranks(look: Lookup[Any], work: Work, *, record: StageRecord, lease: Lease, step: str) -> None:
    """Run a stage's body on GRAFT_RANKS ranks, to its end.

    Raises:
        RankLost: a rank was killed, or its machine is gone.
        Exception: what the body raised on one of the ranks.
    """
    runtime = work.runtime
    order = Order(
        stage=_name(look.stage.body),
        step=step,
        key=look.key,
        config=(_name(type(look.config)), look.config.model_dump(mode="json")),
        inputs={name: (_name(type(artifact)), artifact.uri) for name, artifact in look.inputs.items()},
        runtime={
            # A server's address may hold a password, and is of no use to a rank.
            **runtime.model_dump(mode="json", exclude={"tracking_uri", "prefect_api_url"}),
            # The sum stays what was asked for.
            "workers": -(-runtime.workers // runtime.ranks),
        },
        token=lease.token,
        parent=os.getpid(),
    )
    words = work.state / WORDS
    for name in list(words.files()):
        words.remove(name)
    with _begin(order, runtime) as ranks:
        while not ranks.ended(seconds=LOOK_SECONDS):
            _follow(work, record)
    _follow(work, record)
    work.ledger = Ledger(work.state / "ledger", data=work.data)
    said = [_word(words, rank) for rank in range(runtime.ranks)]
    _raise_failure(said, trace=ranks.trace)
    assert said[0] is not None
    work.last_metrics.update(said[0].metrics)


def _begin(order: Order, runtime: Runtime) -> AbstractContextManager[Ranks]:
    if runtime.ranks_engine == "torchrun":
        return torchrun(order, runtime)
    try:
        from tasks.ray_ranks import ray_ranks
    except ImportError:
        raise ValueError("GRAFT_RANKS_ENGINE=ray needs Ray; install it: pip install 'graft-ssl[ray]'") from None
    return ray_ranks(order, runtime)


def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _follow(work: Work, record: StageRecord) -> None:
    """Pass on what rank 0 has noted."""
    from tasks.stage import PROGRESS  # which imports this file

    try:
        progress = work.state.read_json(PROGRESS)
    except (FileNotFoundError, CorruptFile):
        return
    work.progress(progress["done"], progress["total"], unit=progress["unit"])
    # Releases nothing; wakes whoever sends what rank 0 has released.
    record.release(0)


def _word(words: Folder, rank: int) -> Word | None:
    try:
        return Word.model_validate_json(words.read(f"{rank}.json"))
    except FileNotFoundError:
        return None


def _raise_failure(said: list[Word | None], *, trace: str) -> None:
    """Raise what went wrong first: an error of the body; else the loss of a rank, of which the others' errors come."""
    failed = [(rank, word) for rank, word in enumerate(said) if word is not None and word.end == "failed"]
    for _, word in failed:
        for kind in ERRORS:
            if word.error == kind.__name__:
                raise kind(word.message)
    if lost := [str(rank) for rank, word in enumerate(said) if word is None]:
        raise RankLost(
            f"every rank must live until the step is done; of {len(said)}, rank {' and '.join(lost)} ended without a "
            f"word (killed? out of memory? see {trace}). What was committed is kept: run the same command again"
        )
    for rank, word in failed:
        raise RuntimeError(f"rank {rank} of {len(said)} failed: {word.message} (see {trace})")
    if any(word is not None and word.end == "stopped" for word in said):
        raise RankLost("the ranks were told to stop. What was committed is kept: run the same command again")


@contextmanager
def torchrun(order: Order, runtime: Runtime) -> Iterator[Ranks]:
    """Ranks on this machine, started and watched by torchrun, which stops all when one fails."""
    trace = runtime.home.absolute() / "logs" / f"ranks-{order.step}-{order.key[:12]}.log"
    trace.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="graft-ranks-") as folder:
        place = Path(folder) / "order.json"
        place.write_text(order.model_dump_json())
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(runtime.ranks)]
        with trace.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *launch, "--module", "tasks.one_rank", str(place)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**_one_machine(runtime.ranks), **os.environ},
                # Ctrl-C is for this process, which then stops the ranks.
                start_new_session=True,
            )
        ranks = _Torchrun(process, trace=str(trace))
        try:
            yield ranks
        finally:
            ranks.stop()


def _one_machine(number: int) -> dict[str, str]:
    """Ranks talk over loopback, and share the processor; variables of the user's own win."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    return {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // number)),
    }


class _Torchrun:
    def __init__(self, process: subprocess.Popen[bytes], *, trace: str) -> None:
        self.trace = trace
        self._process = process

    def ended(self, *, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        # It passes the signal on. Each rank sees by itself when it is gone, and ends.
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
