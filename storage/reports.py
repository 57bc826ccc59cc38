"""Report: one page for people. Its digest covers its tables, not its pixels."""

from __future__ import annotations

from typing import Any, ClassVar

from storage.artifact import Artifact
from storage.folder import Folder

PAGE = "report.html"
TABLES = "tables.json"


class Report(Artifact):
    """A page that opens offline, and the tables it shows."""

    kind: ClassVar[str] = "Report"
    undigested: ClassVar[frozenset[str]] = frozenset({PAGE})

    @property
    def page(self) -> str:
        """The path of the page on this machine."""
        with self.folder.local(PAGE) as path:
            return str(path)

    @property
    def tables(self) -> dict[str, Any]:
        tables: dict[str, Any] = self.folder.read_json(TABLES)
        return tables


def write_report_files(folder: Folder, *, page: str, tables: dict[str, Any]) -> None:
    """Write a report's files."""
    folder.write(PAGE, page.encode())
    folder.write_json(TABLES, tables)
