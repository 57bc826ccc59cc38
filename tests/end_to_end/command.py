"""The `graft` command as its users run it: a process of its own, with its own home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("smoke.yaml")
SCRIPT = Path(sys.executable).with_name("graft")
# For what must happen at all; nothing waits that long unless it is broken.
PATIENCE_SECONDS = 120.0
T = TypeVar("T")


class Result(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str


def environment(home: Path, **settings: object) -> dict[str, str]:
    """The variables of a user's shell with this home, and with settings of Graft (`workers=0` is GRAFT_WORKERS=0)."""
    chosen = {"workers": 0, "batch_rows": 16, **settings}
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home.parent),
        # The tree that this file lies in, wherever the script was installed from.
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "GRAFT_HOME": str(home),
        **{f"GRAFT_{name.upper()}": str(value) for name, value in chosen.items()},
    }


def start(*argv: str | Path, env: Mapping[str, str], prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a command and return at once."""
    return subprocess.Popen(
        [*prefix, str(SCRIPT), *map(str, argv)],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """Wait for a command's end."""
    stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    return Result(process.returncode, stdout, stderr)


def graft(*argv: str | Path, env: Mapping[str, str]) -> Result:
    """Run a command in a process of its own."""
    return finish(start(*argv, env=env))


def eventually(look: Callable[[], T | None], *, what: str) -> T:
    """Ask again and again until the answer is neither None nor false; fails when that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")


class WarmGraft:
    """Runs commands in forks of a process that has imported what is slow to import; see warm.py."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(folder) | {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    def __call__(self, *argv: str | Path, env: Mapping[str, str]) -> Result:
        """Run a command to its end."""
        assert self._process.stdin and self._process.stdout
        places = {name: self._folder / name for name in ("stdout", "stderr")}
        for place in places.values():
            place.write_text("")
        command = {"argv": [str(word) for word in argv], "env": dict(env)}
        self._process.stdin.write(json.dumps(command | {name: str(place) for name, place in places.items()}) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Result(code, places["stdout"].read_text(), places["stderr"].read_text())

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate(timeout=PATIENCE_SECONDS)
