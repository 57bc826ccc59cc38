"""Commands that look after what is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli_options import console, say, settings
from flows.terminal import print_rows

app = typer.Typer()

Days = Annotated[float, typer.Option(min=0, help="Keep data that was made or used in the last so many days.")]
WorkDays = Annotated[float, typer.Option(min=0, help="Keep work that was written to in the last so many days.")]
Delete = Annotated[bool, typer.Option("--delete", help="Remove it; without, it is only listed.")]
Key = Annotated[str, typer.Argument(help="Of an artifact; see graft status --keys.")]


@app.command()
def gc(days: Days = 30, work_days: WorkDays = 7, delete: Delete = False) -> None:
    """List, or remove, what no run needs: data that is not used, work that was given up, replaced attempts."""
    from flows.garbage import CollectRequest, collect

    done = collect(CollectRequest(days=days, work_days=work_days, delete=delete), runtime=settings())
    print_rows(console, done.rows())
    say(f"{done}" if delete else f"{done}; to remove them: graft gc --days {days:g} --work-days {work_days:g} --delete")


@app.command()
def pin(key: Key, reason: Annotated[str, typer.Option(help="Why it is kept.")] = "") -> None:
    """Keep an artifact although no run uses it."""
    from flows.pipeline import open_store
    from storage.pins import pin

    pin(open_store(settings()), key, reason=reason)


@app.command()
def pins() -> None:
    """List the artifacts that are kept although no run uses them."""
    from flows.pipeline import open_store
    from storage.pins import pinned

    print_rows(console, [{"key": key, "reason": why} for key, why in sorted(pinned(open_store(settings())).items())])


@app.command()
def unpin(key: Key) -> None:
    """Keep an artifact only as long as runs use it."""
    from flows.pipeline import open_store
    from storage.pins import unpin

    unpin(open_store(settings()), key)
