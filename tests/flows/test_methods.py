"""`graft methods`: lists what there is, and the page in docs/ says the same."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from flows.cli import app
from flows.methods import as_markdown, tables
from models.pretext.base import method_names

PAGE = Path(__file__).parent.parent.parent / "docs" / "methods.md"


def names() -> list[str]:
    return method_names("models.pretext") + method_names("models.transfer")


def test_every_method_is_listed_once_with_all_that_is_said_of_it() -> None:
    rows = [row for group in tables().values() for row in group]
    assert [row.method for row in rows] == names()
    assert all(all(row) for row in rows)


def test_the_command_prints_every_method() -> None:
    shown = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.stdout.splitlines() if "arXiv" in line] == names()


def test_the_page_has_the_tables_of_the_command() -> None:
    page = PAGE.read_text()
    made = re.search(r"<!-- made by: graft methods --markdown -->\n(.*)<!-- end -->", page, re.DOTALL)
    assert made is not None
    shown = CliRunner().invoke(app, ["methods", "--markdown"])
    assert shown.stdout == as_markdown()
    assert made[1].strip() == as_markdown().strip(), (
        "docs/methods.md must have the tables of `graft methods --markdown`; put them between its two marks"
    )


def test_the_page_tells_the_departures_of_every_method() -> None:
    departures = PAGE.read_text().partition("## Departures")[2]
    assert [name for name in names() if f"`{name}`" not in departures] == []
