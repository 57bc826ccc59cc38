"""`graft methods`: what a teacher or a student can learn by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from models.pretext.base import PretextMethod

COLUMNS = ("method", "paper", "kind", "looks at", "keeps", "verified")


class Row(NamedTuple):
    """One method, as a table shows it."""

    method: str
    paper: str
    arxiv: str
    kind: str
    views: str
    keeps: str
    verified: str


def methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/methods.md.")] = False,
) -> None:
    """List the methods that a recipe can name, with what each needs and what is verified."""
    if markdown:
        typer.echo(as_markdown(), nl=False)
        return
    console = Console()
    for title, rows in tables().items():
        table = Table(*COLUMNS, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(row.method, f"{row.paper}, arXiv {row.arxiv}", *row[3:])
        console.print(table)


def tables() -> dict[str, list[Row]]:
    """Every method: of teachers (`train_pretext`, `train_direct`), and of students (`train_student`)."""
    from models.pretext.base import load_method, load_transfer, method_names

    return {
        "train_pretext, train_direct": [_row(name, load_method(name)) for name in method_names("models.pretext")],
        "train_student": [_row(name, load_transfer(name)) for name in method_names("models.transfer")],
    }


def _row(name: str, kind: type[PretextMethod]) -> Row:
    card = kind.card
    return Row(name, card.paper, card.arxiv, card.kind, card.views, card.keeps, card.verified)


def as_markdown() -> str:
    """The tables as docs/methods.md has them."""
    lines = []
    for title, rows in tables().items():
        lines += [f"### {title}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        for row in rows:
            paper = f"[{row.paper}](https://arxiv.org/abs/{row.arxiv})"
            lines.append(f"| {' | '.join((f'`{row.method}`', paper, *row[3:]))} |")
        lines.append("")
    return "\n".join(lines)
