"""What a result was computed with; kept in the marker, never in the key."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tasks.runtime import Runtime

PACKAGES = ("graft-ssl", "torch", "torchvision", "numpy", "zarr", "pyarrow", "pillow", "scikit-learn")


def environment(runtime: Runtime) -> dict[str, str]:
    """Package versions, Python, machine, device and git revision."""
    return {**_fixed(), "device": runtime.torch_device}


@cache
def _fixed() -> dict[str, str]:
    facts = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if revision := _git_revision():
        facts["revision"] = revision
    return facts


def _git_revision() -> str | None:
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
