"""A run with nothing to compute notes what it uses, changes nothing, and waits for no vendor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.end_to_end.command import PATIENCE_SECONDS, RECIPE, SCRIPT, environment

VENDORS = {"prefect", "mlflow", "matplotlib", "faiss"}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def imported(importtime: str) -> set[str]:
    """Packages that `python -X importtime` says were imported."""
    lines = (line for line in importtime.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def test_a_second_run_does_no_work(home: Path) -> None:
    # A database that nobody may open: it is none.
    (home / "mlflow.db").write_text("no database")
    before = contents(home)
    second = subprocess.run(
        [sys.executable, "-X", "importtime", str(SCRIPT), "run", str(RECIPE)],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert second.returncode == 0, second.stderr[-2000:]
    assert "accuracy on test images" in second.stdout
    assert f"report: {home}" in second.stdout
    after = contents(home)
    new = [place for place in after if place not in before]
    # So that what is used is not collected.
    assert [Path(place).parent for place in new] == [Path("store/runs")]
    assert {place: after[place] for place in before} == before
    assert "flows" in imported(second.stderr)
    assert imported(second.stderr) & VENDORS == set()
