"""What MLflow hears of one step: its settings and inputs, its curves, what the machine did meanwhile, and its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from storage.artifact import Marker
from storage.courier import Courier
from storage.folder import Folder
from storage.outbox import Outbox
from storage.store import MARKER
from storage.tracking_runs import URI_TAG
from storage.tracking_system import SystemSampler

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 30.0
# Larger files are found by their artifact's URI.
SMALL_FILE_BYTES = 64 * 2**20
SMALL_FILES = (".json", ".html", ".png", ".safetensors")


class MlflowRecord:
    """One step's outbox, and the courier that sends it."""

    def __init__(self, outbox: Outbox, courier: Courier) -> None:
        self._outbox = outbox
        self._courier = courier
        self._sampler: SystemSampler | None = None
        courier.signal()

    def sample(self) -> None:
        """Sample the machine from here on until the step ends."""
        self._sampler = SystemSampler(self._outbox, on_sample=self._courier.signal)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._outbox.log(metrics, step=step)

    def commit(self) -> int:
        return self._outbox.commit()

    def release(self, position: int) -> None:
        self._outbox.release(position)
        self._courier.signal()

    def truncate(self, position: int) -> None:
        self._outbox.truncate(position)

    def stopped(self, error: BaseException) -> None:
        self._end_samples()
        failed = isinstance(error, Exception)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        try:
            self._outbox.finish("FAILED" if failed else "KILLED", tags={"graft.error": reason})
        except Exception as second:
            # The first error is the one to show: this one follows from it (a full disk, a lost lease).
            log.warning("the end of the step could not be recorded: %s", second)
            return
        self._courier.close(timeout=DELIVERY_SECONDS)

    def finished(self, marker: Marker, folder: Folder) -> bool:
        self._end_samples()
        self._outbox.finish("FINISHED", tags=_result_tags(marker, folder), files=_small_files(marker, folder))
        return self._courier.close(timeout=DELIVERY_SECONDS)

    def _end_samples(self) -> None:
        if self._sampler is not None:
            self._sampler.close()


def _result_tags(marker: Marker, folder: Folder) -> dict[str, str]:
    return {
        URI_TAG: folder.place.parent.uri,
        "graft.digest": marker.digest,
        "graft.kind": marker.kind,
        "graft.seconds": f"{marker.seconds:.1f}",
    }


def _small_files(marker: Marker, folder: Folder) -> dict[str, str]:
    small = [file for file in marker.files if file.path.endswith(SMALL_FILES) and file.size <= SMALL_FILE_BYTES]
    files = {file.path: folder.at(file.path) for file in small if "zarr.json" not in file.path}
    return {MARKER: folder.place.parent.address(MARKER), **files}


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's flat params: {"a": {"b": 1}} gives {"a.b": "1"}."""
    if isinstance(value, Mapping) and value:
        parts = (flatten(part, f"{prefix}{name}.") for name, part in value.items())
        return {name: text for part in parts for name, text in part.items()}
    return {prefix.rstrip("."): value if isinstance(value, str) else json.dumps(value)}
