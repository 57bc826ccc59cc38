"""Who is told how far the work is."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.stage import Reporter


class Silent:
    """Tells nobody."""

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None: ...


@dataclass(frozen=True)
class Several:
    """Tells everybody in a list."""

    reporters: tuple[Reporter, ...]

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None:
        for reporter in self.reporters:
            reporter.progress(step, done=done, total=total, unit=unit)
