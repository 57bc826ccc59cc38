"""A process that has imported what is slow to import, and runs each `graft` command in a fork of itself.

The fork runs the installed script with an environment, a standard output and an end of its own, so it does what
a user's command does, seconds sooner. This reads one JSON object a line, and answers with the fork's process id:

    {"argv": [...], "env": {...}, "stdout": path, "stderr": path, "steps": path}

Every training step adds one byte to the file `steps`. Asked for {"collect": pid}, it answers with the exit code, or
with null while the command runs. Prefect is not imported here: it reads its settings when it is.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401
import mlflow  # noqa: F401

import flows.pipeline  # noqa: F401
import tasks.report_page  # noqa: F401
from models.training import loop


def become(command: dict[str, Any]) -> None:
    """Make this process the command; ends as the command does."""
    os.environ.clear()
    os.environ.update(command["env"])
    for descriptor, place in ((0, os.devnull), (1, command["stdout"]), (2, command["stderr"])):
        opened = os.open(place, os.O_RDWR)
        os.dup2(opened, descriptor)
        os.close(opened)
    # A shell's background job ignores Ctrl-C, and so would what a test in one starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count_steps(Path(command["steps"]))
    script = Path(sys.executable).with_name("graft")
    sys.argv = [str(script), *command["argv"]]
    runpy.run_path(str(script), run_name="__main__")


def count_steps(place: Path) -> None:
    """Note every training step from here on."""
    step = loop._step

    def counted(*args: Any, **kwargs: Any) -> Any:
        with place.open("a") as file:
            file.write(".")
        return step(*args, **kwargs)

    loop._step = counted


def collect(pid: int) -> int | None:
    """The exit code of a command, if it has ended."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    # What is there now stays in memory that the forks share.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        command = json.loads(line)
        if "collect" in command:
            answer = collect(command["collect"])
        else:
            answer = os.fork()
            if answer == 0:
                become(command)
                return
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
