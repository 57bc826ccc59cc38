"""A Prefect server on this machine, shared by all runs that need one: the first starts it, the last stops it.

Every run holds a shared lock on one file while it uses the server. The operating system lets go of the lock of a run
that was killed, so the last one to leave, or the next one to come, knows.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from storage.folder import writing
from tasks.runtime import Runtime

START_SECONDS = 120.0
STOP_SECONDS = 15.0


class ServerFailed(RuntimeError):
    """The local Prefect server did not start; the message names its log."""


@contextmanager
def local_server(
    runtime: Runtime, *, port: int | None = None, on_start: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """A block in which a local Prefect server runs; gives its API's address.

    Args:
        port: where it listens, if it is not there yet; a free port by default.
        on_start: is called when it is not there yet, which takes a while.
    Raises:
        ServerFailed: it does not start.
    """
    folder = runtime.home.absolute() / "prefect"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        users = (folder / "users.lock").open("w")
    with users:
        with _turn(folder):
            fcntl.flock(users, fcntl.LOCK_SH)
            url = _running(folder)
            if url is None:
                on_start()
                url = _start(folder, port)
        try:
            yield url
        finally:
            with _turn(folder):
                fcntl.flock(users, fcntl.LOCK_UN)
                if _nobody_else(users):
                    _stop(folder)


def restart_if_dead(runtime: Runtime, *, port: int) -> bool:
    """Start the server again if its process is gone; gives whether it was. To be called inside `local_server`."""
    folder = runtime.home.absolute() / "prefect"
    with _turn(folder):
        pid = _pid(folder)
        # One that answers late is busy: to stop it would not help.
        if pid is not None and _is_prefect(pid):
            return False
        _start(folder, port)
        return True


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Starting and stopping is done by one process at a time."""
    with (folder / "turn.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _nobody_else(users: Any) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def address(runtime: Runtime) -> str | None:
    """The address of the server that was started last and not stopped; it may be gone all the same."""
    return _address(runtime.home.absolute() / "prefect")


def _address(folder: Path) -> str | None:
    try:
        server = json.loads((folder / "server.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return f"http://127.0.0.1:{server['port']}/api"


def _running(folder: Path) -> str | None:
    """The address of a server that is there and answers; one that does not answer is stopped."""
    url = _address(folder)
    if url is None or answers(f"{url}/health"):
        return url
    _stop(folder)
    return None


def answers(url: str) -> bool:
    """Whether a server is there and well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _start(folder: Path, port: int | None) -> str:
    port = port or free_port()
    log = folder / "server.log"
    environment = os.environ | {
        # The interface asks the address named here, not the one that --port names.
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_HOME": str(folder),
        # For links in what automations send.
        "PREFECT_UI_URL": f"http://127.0.0.1:{port}",
    }
    environment.pop("PREFECT_API_URL", None)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    (folder / "server.json").write_text(json.dumps({"pid": process.pid, "port": port}))
    url = f"http://127.0.0.1:{port}/api"
    try:
        _wait_for(url, process, log=log)
    except BaseException:
        # Also after Ctrl-C: nobody would use it, so nobody would stop it.
        _stop(folder)
        raise
    return url


def _wait_for(url: str, process: subprocess.Popen[bytes], *, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(f"{url}/health"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(
                f"the local Prefect server must start within {START_SECONDS:.0f} s and did not; its log is {log}. "
                "Mend what it says, or run without it: --no-orchestrator"
            )
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pid(folder: Path) -> int | None:
    """The process of the server, if one was started."""
    try:
        return int(json.loads((folder / "server.json").read_text())["pid"])
    except (FileNotFoundError, ValueError):
        return None


def _stop(folder: Path) -> None:
    pid = _pid(folder)
    if pid is None:
        return
    if _is_prefect(pid):
        _signal_group(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _is_prefect(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        _signal_group(pid, signal.SIGKILL)
    (folder / "server.json").unlink(missing_ok=True)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
        os.waitpid(pid, os.WNOHANG)
    except (ProcessLookupError, ChildProcessError):
        return


def _is_prefect(pid: int) -> bool:
    """Whether that process lives and is the server: after a restart of the machine another may bear its number."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    command = Path(f"/proc/{pid}/cmdline")
    if not Path("/proc/self").exists():
        return True
    try:
        return b"prefect" in command.read_bytes()
    except OSError:
        return False
