"""Ranks as forks of one process that has imported what is slow to import: real process groups, seconds sooner.

As a script it reads one JSON object a line and answers with the exit codes of the ranks:

    {"call": "MODULE:FUNCTION", "arguments": [...], "ranks": N}

The function is called as `function(rank, number, meet, *arguments)` on each rank. When one fails, the others are ended.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class RankForks:
    """The process, as tests talk to it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # One thread: a fork has only the thread that forks.
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, call: str, *arguments: Any, ranks: int) -> list[int]:
        """Call a function on each rank; gives their exit codes."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"call": call, "arguments": arguments, "ranks": ranks}) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    def close(self) -> None:
        self._process.communicate(timeout=60)


def open_group(rank: int, number: int, meet: str) -> None:
    """Make this process a rank."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=number)


def _serve() -> None:
    # An optimiser imports the first of these at its first step.

    import tasks.extract_features
    import tasks.finetune_encoder
    import tasks.one_rank
    import tasks.train_student  # noqa: F401

    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        command = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            meet = f"file://{folder}/meet"
            pids = [_fork(command, rank, meet) for rank in range(command["ranks"])]
            codes = _wait(dict(zip(pids, range(len(pids)), strict=True)))
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def _fork(command: dict[str, Any], rank: int, meet: str) -> int:
    pid = os.fork()
    if pid == 0:
        module, _, name = command["call"].partition(":")
        code = 1
        try:
            done = getattr(import_module(module), name)(rank, command["ranks"], meet, *command["arguments"])
            code = 1 if done is False else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def _wait(ranks: dict[int, int]) -> list[int]:
    codes = [0] * len(ranks)
    left = set(ranks)
    while left:
        pid, status = os.wait()
        left.discard(pid)
        codes[ranks[pid]] = os.waitstatus_to_exitcode(status)
        if codes[ranks[pid]]:
            for other in left:
                os.kill(other, signal.SIGTERM)
    return codes


if __name__ == "__main__":
    _serve()
