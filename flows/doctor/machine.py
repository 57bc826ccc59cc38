"""The machine, and what is installed on it."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from flows.doctor.finding import Finding, broken, look, ok
from tasks.runtime import Runtime

PACKAGE = "graft-ssl"
SHOWN = ("torch", "torchvision", "prefect", "mlflow", "zarr", "pyarrow", "numpy")
GIB = 2**30
# A checkpoint of a large network, or some shards of features, are of this size.
LITTLE_SPACE, NO_SPACE = 10 * GIB, GIB
# The driver of NVIDIA says by this that it is loaded.
DRIVER = Path("/proc/driver/nvidia/version")


def packages(_runtime: Runtime) -> Iterator[Finding]:
    """Hold what is installed against what this version of Graft requires."""
    yield ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        lines = requires(PACKAGE) or []
    except PackageNotFoundError:
        yield look("packages", f"{PACKAGE} is not installed, so nobody knows what it requires", "pip install -e .")
        return
    wrong = [finding for line in lines if (finding := _wrong(Requirement(line)))]
    yield from wrong
    if not wrong:
        yield ok("packages", ", ".join(f"{name} {version(name)}" for name in SHOWN))


def _wrong(needed: Requirement) -> Finding | None:
    if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
        return None
    remedy = f"pip install --constraint constraints.txt '{needed.name}{needed.specifier}'"
    try:
        installed = version(needed.name)
    except PackageNotFoundError:
        return broken(needed.name, f"not installed; {needed.specifier or 'any version'} is required", remedy)
    if needed.specifier.contains(installed, prereleases=True):
        return None
    return broken(needed.name, f"{installed} is installed; {needed.specifier} is required", remedy)


def processor(_runtime: Runtime) -> Iterator[Finding]:
    """Cores, memory, and whether bf16 is computed or emulated."""
    from models.precision import multiplies_bf16

    memory = psutil.virtual_memory()
    bf16 = "bf16 in hardware" if multiplies_bf16("cpu") else "bf16 emulated (precision: float32 is faster here)"
    sizes = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB of memory free"
    yield ok("processor", f"{_cores()} cores, {bf16}, {sizes}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu(runtime: Runtime) -> Iterator[Finding]:
    """GPUs as torch sees them; a driver that torch cannot use is what it usually is."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    why = " ".join(" ".join(str(one.message) for one in said).split())
    if count == 0:
        yield _no_gpu(runtime, why=why, build=torch.version.cuda)
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        facts = torch.cuda.get_device_properties(number)
        capability = f"compute capability {facts.major}.{facts.minor}"
        yield ok(
            f"GPU {number}", f"{facts.name}, {capability}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA build "
            f"{torch.version.cuda}"
        )  # fmt: skip
    number = torch.device(runtime.torch_device).index or 0
    if 0 < count <= number:
        yield broken("GRAFT_DEVICE", f"{runtime.device}, and there are {count} GPUs", f"GRAFT_DEVICE=cuda:{count - 1}")


def _no_gpu(runtime: Runtime, *, why: str, build: str | None) -> Finding:
    wanted = runtime.device.startswith("cuda")
    if not DRIVER.exists():
        if not wanted:
            return ok("GPU", "none; all runs on the processor")
        return broken(
            "GPU", f"GRAFT_DEVICE={runtime.device}, and no driver is loaded", "load it, or unset GRAFT_DEVICE"
        )
    if build is None:
        return broken(
            "GPU", "there is a driver, and torch is built without CUDA", "install torch with CUDA (pytorch.org)"
        )
    return broken(
        "GPU",
        f"there is a driver, and torch (CUDA {build}) cannot use it: {why or 'no device is visible'}",
        "a driver as new as this CUDA, or torch for an older CUDA; CUDA_VISIBLE_DEVICES must not hide the device",
    )


def disk(runtime: Runtime) -> Iterator[Finding]:
    """Free space where Graft writes."""
    places = {"GRAFT_HOME": runtime.home.absolute(), "store": runtime.store_root, "cache": runtime.cache}
    for name, place in places.items():
        if isinstance(place, str):
            # An object store has no end.
            continue
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free
        found = f"{free / GIB:.1f} GiB free at {place}"
        remedy = f"free space there, or point {'GRAFT_STORE' if name == 'store' else 'GRAFT_HOME'} to another disk"
        if free < NO_SPACE:
            yield broken(f"space: {name}", found, remedy)
        elif free < LITTLE_SPACE:
            yield look(f"space: {name}", found, remedy)
        else:
            yield ok(f"space: {name}", found)
