"""A process that is kept alive."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flows.local_server import answers

START_SECONDS = 120.0
# A worker waits for its runs, which keep a checkpoint.
STOP_SECONDS = 40.0
# Between two starts of what dies again and again.
LONGEST_PAUSE_SECONDS = 60.0


class ServeFailed(RuntimeError):
    """Something did not start; the message names its log."""


@dataclass
class Service:
    """A process that is started again when it dies.

    Attributes:
        name: for the log file and what is said.
        command: what is run.
        variables: of its environment, besides ours.
        log_file: takes what it prints.
        healthy: address that answers with 200 when it works; none where living is enough.
    """

    name: str
    command: list[str]
    variables: dict[str, str]
    log_file: Path
    healthy: str | None = None
    _process: subprocess.Popen[bytes] | None = None
    _pause: float = field(default=1.0)
    _not_before: float = 0.0

    def start(self) -> None:
        """Start it; does not wait."""
        self._sweep()
        with self.log_file.open("ab") as stream:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=os.environ | self.variables,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it works.

        Raises:
            ServeFailed: it ended, or took too long.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self.works:
            if not self.lives or time.monotonic() > deadline:
                raise ServeFailed(
                    f"{self.name} must start within {START_SECONDS:.0f} s and did not; its log is {self.log_file}"
                )
            time.sleep(0.2)

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def works(self) -> bool:
        return self.lives and (self.healthy is None or answers(self.healthy))

    def restart_if_dead(self) -> bool:
        """Start it again if it died, later each time; gives whether it was started."""
        now = time.monotonic()
        if self.lives:
            # Long enough without dying to be trusted again.
            if now > self._not_before + LONGEST_PAUSE_SECONDS:
                self._pause = 1.0
            return False
        if now < self._not_before:
            return False
        self.start()
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return True

    def stop(self) -> None:
        """End it and all that it started."""
        if self._process is None:
            return
        # To it alone: what it started is its own to end, and what it leaves is swept up.
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._sweep()

    def _sweep(self) -> None:
        """Kill what is left of it: a child that outlives its parent keeps the port."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
