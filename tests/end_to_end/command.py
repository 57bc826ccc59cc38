"""The `graft` command as its users run it: a process of its own, with its own home."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("smoke.yaml")
SCRIPT = Path(sys.executable).with_name("graft")
ALONE = "--no-orchestrator"
# For what must happen at all; nothing waits that long unless it is broken.
PATIENCE_SECONDS = 120.0
STEP_LINE = re.compile(r"^\[ *\d+/\d+\] (\w+): (.*)$", re.MULTILINE)
T = TypeVar("T")


class Result(NamedTuple):
    """What a command left: its exit code, what it printed, and how many training steps it did (where counted)."""

    code: int
    stdout: str
    stderr: str
    training_steps: int | None = None

    @property
    def computed(self) -> list[str]:
        """The steps that the command said it computed, in order."""
        return [step for step, how in STEP_LINE.findall(self.stdout) if how != "reused"]

    @property
    def reused(self) -> list[str]:
        """The steps that the command said it reused, in order."""
        return [step for step, how in STEP_LINE.findall(self.stdout) if how == "reused"]


def environment(home: Path, **settings: object) -> dict[str, str]:
    """The variables of a user's shell, with this home and settings of Graft (`workers=0` is GRAFT_WORKERS=0)."""
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


def start(*argv: str | Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command and return at once."""
    return subprocess.Popen(
        [str(SCRIPT), *map(str, argv)],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """Wait for a command's end; one that does not come to an end is killed."""
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Result(process.returncode, stdout, stderr)


def graft(*argv: str | Path, env: Mapping[str, str]) -> Result:
    """Run a command in a process of its own."""
    return finish(start(*argv, env=env))


class WarmGraft:
    """Runs commands in forks of a process that has imported what is slow to import; see warm.py.

    Args:
        folder: for what the commands print.
        prefix: a command that starts the process, such as `unshare`.
    """

    def __init__(self, folder: Path, *, prefix: tuple[str, ...] = ()) -> None:
        self._files = {name: folder / name for name in ("stdout", "stderr", "steps")}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(folder) | {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __call__(self, *argv: str | Path, env: Mapping[str, str]) -> Result:
        """Run a command to its end."""
        assert self._process.stdin and self._process.stdout
        for place in self._files.values():
            place.write_text("")
        command = {"argv": [str(word) for word in argv], "env": dict(env)}
        command |= {name: str(place) for name, place in self._files.items()}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        texts = {name: place.read_text() for name, place in self._files.items()}
        return Result(code, texts["stdout"], texts["stderr"], len(texts["steps"]))

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate(timeout=PATIENCE_SECONDS)


class PrefectApi(NamedTuple):
    """What a Prefect server says."""

    url: str

    def ask(self, what: str, **criteria: Any) -> list[dict[str, Any]]:
        """Objects of a kind ("flow_runs", "logs" and so on) by Prefect's filters."""
        request = urllib.request.Request(
            f"{self.url}/{what}/filter",
            data=json.dumps(criteria).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
            found: list[dict[str, Any]] = json.load(response)
        return found

    def flow_runs(self, name: str) -> list[dict[str, Any]]:
        """The flow runs of a name, oldest first. They are named for their recipe's file."""
        return self.ask("flow_runs", flow_runs={"name": {"any_": [name]}}, sort="START_TIME_ASC")

    def of_flow_run(self, what: str, flow_run: dict[str, Any]) -> list[dict[str, Any]]:
        """Task runs, artifacts or logs of one flow run."""
        if what == "task_runs":
            return self.ask(what, flow_runs={"id": {"any_": [flow_run["id"]]}})
        criteria = {"flow_run_id": {"any_": [flow_run["id"]]}}
        return [
            found for page in range(5) for found in self.ask(what, **{what: criteria}, limit=200, offset=200 * page)
        ]

    def progress(self, recipe: str, step: str) -> dict[str, Any] | None:
        """The newest progress artifact of a step, over all runs of a recipe's file."""
        runs = {"name": {"any_": [recipe]}}
        key = {"key": {"any_": [f"{step}-progress".replace("_", "-")]}}
        return next(iter(self.ask("artifacts", flow_runs=runs, artifacts=key, sort="CREATED_DESC")), None)


def answers(url: str) -> bool:
    """Whether a server says that it is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def eventually(look: Callable[[], T], *, what: str) -> T:
    """Ask again and again until the answer is true; gives the answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")


def processes_of(home: Path) -> list[str]:
    """The command lines of all processes that were started with this home, or below a process that was."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if str(home).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            # No process, or one that has just ended.
            continue
    return found
