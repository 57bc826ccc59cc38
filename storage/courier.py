"""Sends an outbox from the background, so that no stage waits for a server."""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context

from storage.outbox import Outbox
from storage.tracking import Tracking

log = logging.getLogger(__name__)


class Courier:
    """A thread that sends one outbox after each signal. A failure never reaches the work; it is said once.

    Args:
        parent: the pipeline's outbox, which is sent before.
    Attributes:
        error: why the last delivery failed, or None.
    """

    def __init__(self, tracking: Tracking, outbox: Outbox, *, parent: Outbox | None = None) -> None:
        self.error: Exception | None = None
        self._tracking = tracking
        self._outbox = outbox
        self._parent = parent
        self._warned = False
        self._closing = False
        self._wake = threading.Event()
        # Of whoever makes it, so that its log is seen there.
        context = copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True, name="graft-courier")
        self._thread.start()

    def signal(self) -> None:
        """There is something to send. Returns at once."""
        self._wake.set()

    def close(self, *, timeout: float) -> bool:
        """Deliver a last time, for at most `timeout` seconds.

        Returns:
            Whether all is sent. If not, a warning says what waits and where.
        """
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        if self._tracking.receipts.is_complete(self._outbox, parent=self._parent):
            return True
        log.warning(
            "MLflow at %s has not all of this run; %d metric rows wait in %s and are sent by the next run",
            self._tracking.uri,
            self._tracking.receipts.waiting_rows(self._outbox),
            self._outbox.folder,
        )
        return False

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            # Read before the delivery: what comes before a close is in the last one.
            last = self._closing
            self._deliver()
            if last:
                return

    def _deliver(self) -> None:
        try:
            self._tracking.deliver(self._outbox, parent=self._parent)
            self.error = None
        except Exception as error:
            self.error = error
            if not self._warned:
                log.warning("%s. The work goes on; its metrics are kept in %s", error, self._outbox.folder)
            self._warned = True
