"""What runs in the process of one rank: the stage's body, with a Work of its own, and a last word about it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import psutil

from storage.folder import Folder
from storage.lease import LeasedFolder
from storage.outbox import Outbox
from storage.store import Store, open_artifact
from tasks.ranks import ERRORS, WORDS, Order, Word
from tasks.recording import NoRecord, NoRecorder, StageRecord
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import PROGRESS, Context, Reporter, Work

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
# Rank 0 may be long at what it does alone; a rank that is gone is seen at once, by whoever started it.
TALK_TIMEOUT = timedelta(hours=6)


class _Noted(Outbox, NoRecord):
    """Rank 0 writes the outbox of the step; the process that started it sends it."""


class _KeptProgress:
    """Rank 0 writes down how far it is, once in a while."""

    def __init__(self, state: Folder) -> None:
        self._state = state
        self._kept = 0.0

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if done == total or now - self._kept > LOOK_SECONDS:
            self._kept = now
            self._state.write_json(PROGRESS, {"done": done, "total": total, "unit": unit})


class _OtherWork(Work):
    """The work of all ranks but the first, which commit their shards and leave the rest to it."""

    def progress(self, done: int, total: int, *, unit: str) -> None:
        pass

    def save(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Place:
    """Where a rank stands: its number, of how many; its number on its machine; and where all meet."""

    rank: int
    number: int
    local: int
    meet: str


def run_rank(order: Order, place: Place) -> bool:
    """Run a stage's body as one of several ranks; whether it went well.

    What it ends with is said in the work folder, and not raised.
    """
    store, folder = open_work(order)
    word = Word(end="stopped")
    try:
        word = Word(end="done", metrics=_work(order, place, store, folder))
    except Exception as error:
        kind = next((kind.__name__ for kind in ERRORS if isinstance(error, kind)), "")
        message = str(error) if kind else f"{type(error).__name__}: {error}"
        word = Word(end="failed", error=kind, message=" ".join(message.split()))
        log.exception("rank %d failed", place.rank)
    except (SystemExit, KeyboardInterrupt):
        log.warning("rank %d was stopped", place.rank)
    finally:
        # A signal that comes now, because another rank failed, finds this one ready with its word.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say(word, folder, rank=place.rank)
    return word.end == "done"


def open_work(order: Order) -> tuple[Store, LeasedFolder]:
    """The store, and the work folder as the holder of the lease may write to it."""
    runtime = Runtime(**order.runtime)
    store = Store(runtime.store_root, lease_seconds=runtime.lease_seconds, cache=runtime.read_cache)
    lease = store.lease(order.key, token=order.token)
    return store, LeasedFolder(store.work_folder(order.key).place, lease=lease)


def _work(order: Order, place: Place, store: Store, folder: LeasedFolder) -> dict[str, float]:
    """Run the body; gives the last value of each metric."""
    import torch.distributed as dist

    from models.collective import wait

    runtime = Runtime(**order.runtime)
    runtime = runtime.model_copy(update={"device": _device(runtime.device, local=place.local)})
    dist.init_process_group(
        "gloo" if runtime.device == "cpu" else "cpu:gloo,cuda:nccl",
        init_method=place.meet,
        rank=place.rank,
        world_size=place.number,
        timeout=TALK_TIMEOUT,
    )
    outbox = _Noted(folder / "outbox")
    record: StageRecord = outbox if place.rank == 0 and outbox.record() else NoRecord()
    reporter: Reporter = _KeptProgress(folder / "state") if place.rank == 0 else Silent()
    work = (Work if place.rank == 0 else _OtherWork)(
        key=order.key,
        data=store.open_attempt(order.key, lease=store.lease(order.key, token=order.token)),
        state=folder / "state",
        record=record,
        context=Context(runtime, store, NoRecorder(), reporter),
        step=order.step,
    )
    stage, (config_class, config) = _named(order.stage), order.config
    inputs = {name: open_artifact(_named(kind), store.folder_at(uri)) for name, (kind, uri) in order.inputs.items()}
    # All ranks see the same units done before any of them commits another.
    wait()
    stage.body(_named(config_class).model_validate(config), work, **inputs)
    record.commit()
    # Not after a failure: a rank that is gone would not answer.
    dist.destroy_process_group()
    return work.last_metrics


def say(word: Word, folder: Folder, *, rank: int) -> None:
    """Leave the last word of a rank in its work folder."""
    (folder / "state" / WORDS).write(f"{rank}.json", word.model_dump_json().encode())


def _named(name: str) -> Any:
    module, _, own = name.partition(":")
    return getattr(import_module(module), own)


def _device(asked: str, *, local: int) -> str:
    """The device of the rank of that number on its machine.

    Raises:
        ValueError: the machine has fewer devices than ranks, or one device is asked for by its number.
    """
    import torch

    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if asked not in ("auto", "cuda") or local >= torch.cuda.device_count():
        raise ValueError(
            f"each rank needs a GPU of its own; GRAFT_DEVICE is {asked}, and this machine, which has "
            f"{torch.cuda.device_count()}, has none for its rank {local}. Lower GRAFT_RANKS, or set GRAFT_DEVICE to "
            "cuda or cpu"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def _end_with(parent: int) -> None:
    """End this process as soon as torchrun, or the process that started it, is gone."""
    try:
        torchrun = psutil.Process(os.getppid())
        # A process whose parent is gone gets another one.
        while os.getppid() == torchrun.pid and torchrun.ppid() == parent:
            time.sleep(LOOK_SECONDS)
    finally:
        # Also when psutil finds torchrun gone.
        os._exit(1)


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    """Be the rank that torchrun says: ORDER is a file."""
    order = Order.model_validate_json(Path(sys.argv[1]).read_text())
    threading.Thread(target=_end_with, args=(order.parent,), daemon=True).start()
    signal.signal(signal.SIGTERM, _terminated)
    logging.basicConfig(level=logging.WARNING)
    rank, number, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    sys.exit(0 if run_rank(order, Place(rank, number, local, meet="env://")) else 1)


if __name__ == "__main__":
    main()
