"""Markers of every Graft before this one are read: each older form becomes the next newer one, up to today's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from storage.artifact import MARKER_SCHEMA, Marker
from storage.errors import CorruptFile, NewerArtifact

# Schema -> what makes of a marker of that schema one of the next. Whoever raises MARKER_SCHEMA adds an entry here.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def parse_marker(data: bytes, *, place: str) -> Marker:
    """The marker that a file's bytes hold, whichever Graft up to this one wrote it.

    Args:
        place: the file's place, for messages.
    Raises:
        CorruptFile: it is no marker.
        NewerArtifact: a newer Graft wrote it.
    """
    try:
        values = json.loads(data)
        schema = int(values["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{place} must be a marker: it holds no JSON with a schema_version") from error
    if schema > MARKER_SCHEMA:
        raise NewerArtifact(
            f"{place} was made by a newer Graft (schema {schema}; this one reads up to {MARKER_SCHEMA}): upgrade, or "
            "use another store (GRAFT_STORE)"
        )
    for older in range(schema, MARKER_SCHEMA):
        if older not in UPGRADES:
            raise CorruptFile(f"{place} must be a marker: there never was a schema {older}")
        values = UPGRADES[older](values)
    try:
        return Marker.model_validate(values)
    except ValidationError as error:
        raise CorruptFile(f"{place} must be a marker: {error.errors()[0]['msg']}") from error
