"""Samples the machine while a run goes on, under MLflow's own names: system/cpu_utilization_percentage and so on.

MLflow's monitor itself sends what it measures, and gives up when no server answers. These samples go to the outbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from storage.errors import LeaseLost, StoreUnwritable
from storage.outbox import Outbox
from storage.tracking_client import be_quiet

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

log = logging.getLogger(__name__)

# MLflow's own pace for the first hour; then slower, so that a run of a week has some 3,000 points.
SECONDS_BETWEEN_SAMPLES = 10.0
POINTS = 400


class SystemSampler:
    """A thread that samples the machine into one outbox until it is closed; the last sample is of the end.

    Args:
        on_sample: called after each, in the thread.
    """

    def __init__(self, outbox: Outbox, *, on_sample: Callable[[], None]) -> None:
        self._outbox = outbox
        self._on_sample = on_sample
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="graft-system")
        self._thread.start()

    def close(self) -> None:
        """Take the last sample."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            monitors = _monitors()
            while not self._closing.wait(max(SECONDS_BETWEEN_SAMPLES, (time.monotonic() - began) / POINTS)):
                self._sample(monitors)
            self._sample(monitors)
        except LeaseLost:
            # The work is another process's now, which samples its own machine.
            return
        except Exception as error:
            log.warning("the machine is not sampled any more, and the work goes on: %s", error)

    def _sample(self, monitors: list[BaseMetricsMonitor]) -> None:
        metrics: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            metrics |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        # A disk that is full now may have space at the next sample.
        with suppress(StoreUnwritable):
            self._outbox.sample({f"system/{name}": value for name, value in metrics.items()})
            self._on_sample()


def _monitors() -> list[BaseMetricsMonitor]:
    """Monitors of what this machine has: a GPU's want the vendor's library (nvidia-ml-py, pyrsmi)."""
    be_quiet()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for kind in (GPUMonitor, ROCMMonitor):
        with suppress(Exception):
            monitors.append(kind())
    for monitor in monitors:
        # Processor use is measured from one call to the next.
        monitor.collect_metrics()
        monitor.clear_metrics()
    return monitors
