"""What a check found."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "look", "broken"]


class Finding(NamedTuple):
    """One line of the table.

    Attributes:
        what: that was looked at.
        state: ok; look (works, or will by itself, but somebody should know); broken (something will fail).
        found: in words, without secrets.
        remedy: what to do; empty where all is well.
    """

    what: str
    state: State
    found: str
    remedy: str = ""


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(what, "ok", found)


def look(what: str, found: str, remedy: str) -> Finding:
    """Somebody should know."""
    return Finding(what, "look", found, remedy)


def broken(what: str, found: str, remedy: str) -> Finding:
    """Something will fail."""
    return Finding(what, "broken", found, remedy)
