"""One writer an artifact: a lease that is renewed while its holder lives and taken over when it does not."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from storage.errors import CorruptFile, LeaseLost
from storage.folder import Folder
from storage.places import Place


def process_identity() -> dict[str, Any]:
    """Who holds: enough to see on the same machine, without waiting, that the holder is dead."""
    return {"host": _host_identity(), "pid": os.getpid(), "started": _process_start(os.getpid())}


def _host_identity() -> str:
    """This machine since its last start, and this process-id namespace of it (containers share host names)."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:
            parts.append("unknown")
    return "/".join(parts)


def _process_start(pid: int) -> str | None:
    """The start time of a process in clock ticks, or None when no such process lives (or nobody can tell)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else fields[19]


class Lease(ABC):
    """The right to write one artifact; held in a `with` block.

    Args:
        name: what is leased, a file name.
        seconds: how long the lease lives without renewal; a thread renews it three times as often.
        wait: how long to wait for another holder before giving up; None waits for ever.
    Attributes:
        seen: see storage.places.Guard.
        token: of a lease that another process holds and renews for this one, which then must not enter this one.
    Raises:
        TimeoutError: on entering, when the wait was not long enough; names the holder.
    """

    poll_seconds: ClassVar[float]

    def __init__(self, name: str, *, seconds: float, wait: float | None, token: str | None) -> None:
        self.seen: dict[str, Any] = {}
        self._name = f"{name}.json"
        self._seconds = seconds
        self._wait = wait
        self.token = token or uuid.uuid4().hex
        self._expires = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        deadline = None if self._wait is None else time.monotonic() + self._wait
        while not self._take():
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"another process is making this artifact: {self._holder()}")
            time.sleep(self.poll_seconds)
        self._thread = threading.Thread(target=self._renew_until_stopped, daemon=True, name="graft-lease")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._guard():
            self._give_back()

    def check(self) -> None:
        """Make sure that this process still holds the lease; costs nothing until it could have expired.

        Raises:
            LeaseLost: another process took over.
        """
        if time.time() > self._expires:
            with self._guard():
                self._require_mine()

    def is_taken(self) -> bool:
        """Whether a living process holds the lease now; only looks."""
        holder = self._holder()
        return holder is not None and not self._is_over(holder)

    def is_left(self) -> bool:
        """Whether its last holder is gone, and did not give it back; only looks."""
        holder = self._holder()
        return holder is not None and self._is_over(holder)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which no other process can take the lease: what commits goes in here.

        Raises:
            LeaseLost: another process took over before.
        """
        with self._guard():
            self._require_mine()
            yield

    @abstractmethod
    def _guard(self) -> AbstractContextManager[None]:
        """A block in which the lease is read and changed."""

    @abstractmethod
    def _holder(self) -> dict[str, Any] | None:
        """Who holds it, or held it last; None where it was given back."""

    @abstractmethod
    def _is_over(self, holder: dict[str, Any]) -> bool:
        """Whether the holder is dead, or has not renewed in time."""

    @abstractmethod
    def _write(self) -> bool:
        """Write this process down as its holder, now; gives whether it is."""

    @abstractmethod
    def _give_back(self) -> None:
        """Leave it to others, if it is this process's."""

    @abstractmethod
    def forget(self) -> None:
        """Leave nothing behind; for a name that nobody takes again."""

    def _renew(self) -> bool:
        return self._is_mine() and self._write()

    def _is_mine(self) -> bool:
        holder = self._holder()
        return holder is not None and holder["token"] == self.token

    def _require_mine(self) -> None:
        if not self._is_mine():
            raise LeaseLost(
                f"the lease {self._name} must be held to write, and it went to {self._holder()} while this process "
                "stood still; nothing of it was committed. Run the same command again: it goes on from what is kept"
            )

    def _take(self) -> bool:
        with self._guard():
            holder = self._holder()
            return (holder is None or self._is_over(holder)) and self._write()

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            try:
                with self._guard():
                    if not self._renew():
                        return
            except OSError:
                # A full disk, a store that is away: the lease may run out, and then the next check tells.
                continue


class FileLease(Lease):
    """A lease that is a file of a folder that all who want it see, under a lock of the operating system.

    Args:
        folder: where lease files lie.
    """

    poll_seconds = 0.2

    def __init__(
        self, folder: Folder, name: str, *, seconds: float = 60.0, wait: float | None = None, token: str | None = None
    ) -> None:
        super().__init__(name, seconds=seconds, wait=wait, token=token)
        self._folder = folder
        self._lock_name = f".{self._name}.lock"

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Leases are read and changed under a lock that dies with its holder."""
        with self._folder.place.turn(self._lock_name):
            yield

    def _holder(self) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = self._folder.read_json(self._name)
        except (FileNotFoundError, CorruptFile):
            return None
        return value

    def _is_over(self, holder: dict[str, Any]) -> bool:
        return bool(holder["expires"] < time.time()) or died_here(holder)

    def _write(self) -> bool:
        expires = time.time() + self._seconds
        self._folder.write_json(self._name, {"token": self.token, "expires": expires, **process_identity()})
        self._expires = expires
        return True

    def _give_back(self) -> None:
        if self._is_mine():
            self._folder.remove(self._name)

    def forget(self) -> None:
        self._folder.remove(self._name)
        self._folder.remove(self._lock_name)


class LeasedFolder(Folder):
    """A folder that only the holder of a lease writes to; others get LeaseLost."""

    def __init__(self, place: Place | Path, *, lease: Lease) -> None:
        super().__init__(place, guard=lease)


def died_here(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that lives no more."""
    if holder["host"] != _host_identity() or holder["started"] is None:
        return False
    return _process_start(holder["pid"]) != str(holder["started"])


def leased_names(folder: Folder) -> list[str]:
    """What is leased in a folder, or was and its holder left something."""
    return [name.removesuffix(".json") for name in folder.files() if name.endswith(".json")]
