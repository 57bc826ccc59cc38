"""Kill a run at random moments until it is done, and compare its bytes with a run that never stopped.

    python benchmarks/random_kills.py RECIPE [--rounds 3] [--seed 0] [-- ARGUMENTS OF graft run]

The counted kills of the tests visit every phase of every stage; this finds what they did not think of. Prints a line a
round and fails when a digest differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


def graft(recipe: str, home: Path, more: list[str], *, kill_after: float | None) -> int:
    """Run the recipe; gives the exit code, negative for a killed run."""
    command = [str(Path(sys.executable).parent / "graft"), "run", recipe, *more]
    environment = {**os.environ, "GRAFT_HOME": str(home), "GRAFT_CHECKPOINT_SECONDS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def digests(home: Path) -> dict[str, str]:
    """Key -> content digest of every artifact."""
    markers = (home / "store" / "artifacts").glob("*/marker.json")
    return {path.parent.name: json.loads(path.read_text())["digest"] for path in markers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds that a run may live at most")
    arguments, more = parser.parse_known_args()
    more = [word for word in more if word != "--"]
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        if graft(arguments.recipe, whole, more, kill_after=None):
            raise SystemExit("the run that is not killed must succeed")
        expected = digests(whole)
        for number in range(arguments.rounds):
            home, kills = Path(folder) / f"round-{number}", 0
            while graft(arguments.recipe, home, more, kill_after=chance.uniform(3.0, arguments.longest)):
                kills += 1
            differing = [key for key, digest in digests(home).items() if expected.get(key) != digest]
            print(f"round {number}: {kills} kills, {len(differing)} of {len(expected)} artifacts differ")
            if differing:
                raise SystemExit(f"artifacts differ: {differing}")


if __name__ == "__main__":
    main()
