"""One writer an artifact: a lease that is renewed while its holder lives and taken over when it does not."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from storage.errors import CorruptFile, LeaseLost
from storage.folder import FileRecord, Folder, writing

POLL_SECONDS = 0.2


def _process_identity() -> dict[str, Any]:
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


class Lease:
    """The right to write one artifact; held in a `with` block.

    Args:
        folder: where lease files lie.
        name: what is leased, a file name.
        seconds: how long the lease lives without renewal; a thread renews it three times as often.
        wait: how long to wait for another holder before giving up; None waits for ever.
        token: of a lease that another process holds and renews for this one, which then must not enter this one.
    Raises:
        TimeoutError: on entering, when the wait was not long enough; names the holder.
    """

    def __init__(
        self, folder: Folder, name: str, *, seconds: float = 60.0, wait: float | None = None, token: str | None = None
    ) -> None:
        self._folder = folder
        self._name = f"{name}.json"
        self._seconds = seconds
        self._wait = wait
        self.token = token or uuid.uuid4().hex
        self._expires = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        deadline = None if self._wait is None else time.monotonic() + self._wait
        while not self._take():
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"another process is making this artifact: {self._holder()}")
            time.sleep(POLL_SECONDS)
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
            if self._is_mine():
                self._folder.remove(self._name)

    def check(self) -> None:
        """Make sure that this process still holds the lease; costs nothing until it could have expired.

        Raises:
            LeaseLost: another process took over.
        """
        if time.time() > self._expires:
            with self._guard():
                self._require_mine()

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block in which no other process can take the lease: what commits goes in here.

        Raises:
            LeaseLost: another process took over before.
        """
        with self._guard():
            self._require_mine()
            yield

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Leases are read and changed under a lock of the operating system, which dies with its holder."""
        self._folder.make()
        with writing(self._folder.path):
            stream = (self._folder.path / f".{self._name}.lock").open("w")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _holder(self) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = self._folder.read_json(self._name)
        except (FileNotFoundError, CorruptFile):
            return None
        return value

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
            if holder is not None and not _is_dead(holder):
                return False
            self._write()
            return True

    def _write(self) -> None:
        expires = time.time() + self._seconds
        self._folder.write_json(self._name, {"token": self.token, "expires": expires, **_process_identity()})
        self._expires = expires

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            try:
                with self._guard():
                    if not self._is_mine():
                        return
                    self._write()
            except OSError:
                # A full disk: the lease may run out, and then the next check tells.
                continue


class LeasedFolder(Folder):
    """A folder that only the holder of a lease writes to."""

    def __init__(self, path: Path, *, lease: Lease) -> None:
        super().__init__(path)
        self._lease = lease

    def __truediv__(self, name: str) -> LeasedFolder:
        return LeasedFolder(self.path / name, lease=self._lease)

    def write(self, name: str, data: bytes | memoryview) -> FileRecord:
        """Write as a Folder does.

        Raises:
            LeaseLost: another process took over; nothing was written.
        """
        self._lease.check()
        return super().write(name, data)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        # The process may have stood still since the check, in the middle of the write.
        with self._lease.held():
            yield


def _is_dead(holder: dict[str, Any]) -> bool:
    if holder["expires"] < time.time():
        return True
    if holder["host"] != _host_identity() or holder["started"] is None:
        return False
    return _process_start(holder["pid"]) != str(holder["started"])
