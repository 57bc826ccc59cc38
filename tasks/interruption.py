"""Signals that wait until a step of work is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


# The blocks of `deferred_signals` that this process is in.
_under_way: list[Interruption] = []


class Interruption:
    """Whether somebody asked to stop (Ctrl-C, SIGTERM of a scheduler, a cancelled flow run)."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._pending: tuple[int, FrameType | None] | None = None

    @property
    def asked(self) -> bool:
        return self._pending is not None

    def ask(self) -> None:
        """Ask as a SIGTERM does: another rank got one, say."""
        if self._pending is None:
            self._pending = (signal.SIGTERM, None)

    def stop(self) -> None:
        """Let the signal do what it would have done at once; does nothing when there was none.

        Raises:
            BaseException: what the handler raises that was there before (KeyboardInterrupt, and the like).
        """
        if self._pending is not None:
            number, frame = self._pending
            self._pending = None
            self._call(number, frame)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            # Asked twice: now.
            self._call(number, frame)
        self._pending = (number, frame)

    def _call(self, number: int, frame: FrameType | None) -> None:
        handler = self._handlers.get(number)
        if callable(handler):
            handler(number, frame)
        else:
            raise SystemExit(128 + number)


@contextmanager
def deferred_signals() -> Iterator[Interruption]:
    """A block in which SIGINT and SIGTERM only set a flag; the second one acts at once.

    In the middle of a step half of the weights are moved, and a checkpoint of that would be worth nothing. Only the
    main thread gets signals; elsewhere the flag is set by `ask_to_stop`.
    """
    interruption = Interruption()
    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        interruption._handlers[number] = signal.signal(number, interruption._receive)
    _under_way.append(interruption)
    try:
        yield interruption
    finally:
        _under_way.remove(interruption)
        for number in numbers:
            signal.signal(number, interruption._handlers[number])
    interruption.stop()


def ask_to_stop() -> bool:
    """Set the flag of the work under way, from any thread; False when none is that would look at it."""
    for interruption in _under_way:
        interruption.ask()
    return bool(_under_way)
