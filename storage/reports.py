"""Report: one page for people. Its digest covers its tables, not its pixels."""

from __future__ import annotations

from typing import Any, ClassVar

from storage.artifact import Artifact
from storage.folder import Folder

PAGE = "report.html"
TABLES = "tables.json"
PICTURES = {
    "scores.png": "Accuracy of each encoder with its 95 % interval",
    "clusters.png": "Inertia by iteration, and sizes of clusters",
    "montage.png": "Images nearest to the centroids of the largest clusters, a row a cluster",
}


class Report(Artifact):
    """A page that opens offline, and the tables it shows."""

    kind: ClassVar[str] = "Report"
    undigested: ClassVar[frozenset[str]] = frozenset({PAGE, *PICTURES})

    @property
    def page(self) -> str:
        """The path of the page on this machine."""
        with self.folder.local(PAGE) as path:
            return str(path)

    @property
    def pictures(self) -> list[str]:
        """The names of the pictures that also lie beside the page, as PNG."""
        held = {file.path for file in self.marker.files}
        return [name for name in PICTURES if name in held]

    @property
    def tables(self) -> dict[str, Any]:
        tables: dict[str, Any] = self.folder.read_json(TABLES)
        return tables


def write_report_files(folder: Folder, *, page: str, tables: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """Write a report's files.

    Args:
        pictures: a PNG for each name in PICTURES.
    """
    folder.write(PAGE, page.encode())
    for name, png in pictures.items():
        folder.write(name, png)
    folder.write_json(TABLES, tables)
