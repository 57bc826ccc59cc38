"""The `graft` command as its users run it: a process of its own, with its own home."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
SCRIPT = Path(sys.executable).with_name("graft")
ALONE = "--no-orchestrator"
# The steps of a recipe up to its student, in the order of the flow.
ROAD = (
    "index_pretext",
    "index_cluster",
    "index_student",
    "train_pretext",
    "extract_cluster",
    "cluster_features",
    "extract_student",
    "assign_labels",
    "train_student",
)
# For what must happen at all; nothing waits that long unless it is broken.
PATIENCE_SECONDS = 600.0
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


def only(steps: Iterable[str]) -> list[str]:
    """The options that ask for these steps."""
    return [word for step in steps for word in ("--only", step)]


def keys_of_steps(home: Path) -> dict[str, str]:
    """Step of the smoke recipe -> the key that it had when it was last done."""
    keys: dict[str, str] = json.loads((home / "recipes" / "smoke.json").read_text())
    return keys


def graft(*argv: str | Path, env: Mapping[str, str]) -> Result:
    """Run a command in a process of its own, from its first import on."""
    done = subprocess.run(
        [str(SCRIPT), *map(str, argv)], env=dict(env), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    return Result(done.returncode, done.stdout, done.stderr)


class WarmGraft:
    """Runs commands in forks of a process that has imported what is slow to import; see warm.py.

    Args:
        folder: for what the commands print.
        prefix: a command that starts the process, such as `unshare`.
    """

    def __init__(self, folder: Path, *, prefix: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._number = 0
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

    def start(self, *argv: str | Path, env: Mapping[str, str]) -> Running:
        """Start a command and return at once."""
        self._number += 1
        files = {name: self._folder / f"{self._number}.{name}" for name in ("stdout", "stderr", "steps")}
        for place in files.values():
            place.touch()
        places = {name: str(place) for name, place in files.items()}
        pid = self.ask({"argv": [str(word) for word in argv], "env": dict(env), **places})
        assert pid is not None
        return Running(self, pid, files)

    def __call__(self, *argv: str | Path, env: Mapping[str, str]) -> Result:
        """Run a command to its end."""
        return self.start(*argv, env=env).finish()

    def ask(self, command: dict[str, Any]) -> int | None:
        """Give the process one line, and take its answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate(timeout=PATIENCE_SECONDS)


class Running:
    """A command under way."""

    def __init__(self, warm: WarmGraft, pid: int, files: Mapping[str, Path]) -> None:
        self.pid = pid
        self._warm = warm
        self._files = files

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self) -> Result:
        """Wait for its end; a command that does not come to an end is killed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (code := self._warm.ask({"collect": self.pid})) is None:
            time.sleep(0.02)
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise AssertionError(f"the command {self.pid} did not end within {PATIENCE_SECONDS:.0f} s")
        texts = {name: place.read_text() for name, place in self._files.items()}
        return Result(code, texts["stdout"], texts["stderr"], len(texts["steps"]))


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
        found: list[dict[str, Any]] = answer_of(request)
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


def answer_of(request: urllib.request.Request) -> Any:
    """The JSON that a server answers; one that is starting, or too busy (503), is asked again."""

    def attempt() -> bytes | None:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
                answer: bytes = response.read()
                return answer or b"null"
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        except urllib.error.URLError:
            pass
        return None

    return json.loads(eventually(attempt, what=f"an answer to {request.full_url}"))


def answers(url: str) -> bool:
    """Whether a server says that it is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def eventually(look: Callable[[], T | None], *, what: str) -> T:
    """Ask again and again until the answer is neither None nor false; gives the answer."""
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
