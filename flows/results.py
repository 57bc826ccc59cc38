"""What a report says, as rows of text: for a terminal, and for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class TextTable(NamedTuple):
    """A heading, and rows of as many cells."""

    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table as Markdown; a bar in a cell would end it."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def scores(tables: dict[str, Any]) -> TextTable:
    """Accuracy in % with its 95 % interval: a row an encoder, a column a score."""
    names = list(dict.fromkeys((row["task"], row["score"]) for row in tables["scores"]))
    rows = []
    for encoder in dict.fromkeys(row["encoder"] for row in tables["scores"]):
        own = {(row["task"], row["score"]): row for row in tables["scores"] if row["encoder"] == encoder}
        rows.append([encoder, *(with_interval(own.get(name)) for name in names)])
    return TextTable(["encoder", *(f"{task}: {score}" for task, score in names)], rows)


def differences(tables: dict[str, Any]) -> TextTable:
    """Student minus each of the others, with a paired 95 % interval."""
    rows = []
    for row in tables["differences"]:
        interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
        verdict = ("better" if row["difference"] > 0 else "worse") if row["shown"] else "not shown"
        rows.append([row["task"], row["score"], row["against"], f"{100 * row['difference']:+.1f}", interval, verdict])
    return TextTable(["task", "score", "against", "difference", "95 % interval", ""], rows)


def with_interval(row: Mapping[str, Any] | None) -> str:
    """A score in % with its 95 % interval; nothing where there is none."""
    return "" if row is None else f"{100 * row['value']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
