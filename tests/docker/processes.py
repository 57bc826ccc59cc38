"""Start the services of the compose file as processes of this machine, without containers.

Commands, environments, order and health checks are those of the file. What only a container has is replaced by the
little that is listed here: addresses and ports, places of files, and the three foreign images.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.docker import foreign
from tests.docker.composition import FOLDER, ROOT, filled, services

PORTS = {"postgres": 5432, "redis": 6379, "s3": 7070, "mlflow": 5000, "prefect": 4200, "worker": 8080}
# What must happen at all; on a busy machine a server takes a minute.
PATIENCE_SECONDS = 240.0


class Process(NamedTuple):
    """A service under way, and where it writes what it has to say."""

    popen: subprocess.Popen[bytes]
    log: Path


class Stack:
    """The services of the file, started when they are asked for, with all that they depend on.

    Args:
        values: the variables that a person would put into docker/.env.
        worker_settings: those that a person would put into docker/worker.env.
    """

    def __init__(self, values: Mapping[str, str], *, worker_settings: Mapping[str, str]) -> None:
        self.values = values
        self._worker_settings = worker_settings
        # Not below pytest's folder, which only its owner can enter: Postgres refuses to run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="graft-stack-"))
        self.folder.chmod(0o755)
        self.ports = {name: free_port() for name in PORTS}
        self.processes: dict[str, Process] = {}
        self._places = {"/opt/graft/docker": self.folder / "docker", "/graft": self.folder / "graft"}
        self._copy_files()

    def _copy_files(self) -> None:
        self._places["/graft"].mkdir()
        for source in (path for path in FOLDER.iterdir() if path.is_file()):
            target = self.folder / "docker" / source.name
            target.parent.mkdir(exist_ok=True)
            target.write_text(self.local(source.read_text()))

    def local(self, text: str) -> str:
        """The text with this machine's addresses, ports and places; variables are filled in last."""
        for name, port in PORTS.items():
            text = re.sub(rf"\b{name}(?=:{port}\b)", "127.0.0.1", text)
            text = re.sub(rf"\b{port}\b", str(self.ports[name]), text)
        for inside, here in self._places.items():
            text = re.sub(rf"^{inside}(?=/|$)", str(here), text)
        return filled(text.replace("0.0.0.0", "127.0.0.1"), self.values)

    def environment(self, name: str) -> dict[str, str]:
        """The variables of a service, and nothing of the shell that runs the tests but the path."""
        home = self.folder / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        declared = services()[name].get("environment", {})
        return {
            "PATH": foreign.PATH,
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            **{key: self.local(value) for key, value in declared.items()},
            **(self._worker_settings if name == "worker" else {}),
        }

    def up(self, *names: str) -> None:
        """Start services with all that they need, and wait until they are well, or done."""
        for name in names:
            self._launch(name)
        for name in names:
            self._wait(name)

    def _launch(self, name: str) -> None:
        if name in self.processes:
            return
        needed = services()[name].get("depends_on", {})
        # All are launched before one is waited for, so that they start side by side.
        for other in needed:
            self._launch(other)
        for other in needed:
            self._wait(other)
        if name in foreign.COMMANDS:
            command = foreign.COMMANDS[name](self)
        else:
            command = [self.local(word) for word in services()[name]["command"]]
        self.processes[name] = self._start(name, command)

    def _start(self, name: str, command: list[str]) -> Process:
        log = self.folder / f"{name}.log"
        with log.open("ab") as stream:
            popen = subprocess.Popen(
                command,
                env=self.environment(name),
                cwd=self.folder / "homes" / name,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                user=foreign.user(name),
            )
        return Process(popen, log)

    def _wait(self, name: str) -> None:
        process = self.processes[name]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._is_ready(name, process.popen):
            assert time.monotonic() < deadline, f"{name}: {process.log.read_text()[-4000:]}"
            time.sleep(0.3)

    def _is_ready(self, name: str, popen: subprocess.Popen[bytes]) -> bool:
        """Whether a service is well, or, when it is one that comes to an end, whether it has done so."""
        service: dict[str, Any] = services()[name]
        if service["restart"] == "on-failure":
            assert popen.poll() in (None, 0), self.processes[name].log.read_text()[-4000:]
            return popen.poll() == 0
        assert popen.poll() is None, f"{name} ended: {self.processes[name].log.read_text()[-4000:]}"
        if name in foreign.READY:
            return foreign.READY[name](self)
        if "healthcheck" not in service:
            return True
        check = [self.local(word) for word in service["healthcheck"]["test"][1:]]
        return subprocess.run(check, env=self.environment(name), capture_output=True, check=False).returncode == 0

    def logs(self) -> str:
        """All that all processes said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def down(self) -> None:
        """Stop everything, the last started first, and forget it."""
        for process in reversed(self.processes.values()):
            if process.popen.poll() is None:
                os.killpg(process.popen.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.popen.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.popen.pid, signal.SIGKILL)
                process.popen.wait()
        # A worker starts each run in a session of its own.
        for process in Path("/proc").glob("[0-9]*"):
            # Not ours to read, or one that has just ended.
            with suppress(OSError):
                if str(self.folder).encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(self.folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
