"""A question to a server by somebody whom it does not know."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import NamedTuple


class Answer(NamedTuple):
    """What came back; a status of 0 where nothing did."""

    status: int
    text: str


def ask(url: str, *, seconds: float) -> Answer:
    """Get a page, without any user or password."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return Answer(response.status, response.read(1000).decode(errors="replace").strip())
    except urllib.error.HTTPError as error:
        return Answer(error.code, "")
    except OSError:
        return Answer(0, "")
