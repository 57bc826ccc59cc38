"""Check every byte of artifacts."""

from __future__ import annotations

from collections.abc import Mapping

from storage.artifact import Artifact
from storage.errors import CorruptFile


def damaged(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """Hold all data files against the markers; gives step -> what is wrong."""
    found: dict[str, str] = {}
    seen: dict[str, str | None] = {}
    for step, artifact in artifacts.items():
        if artifact.key not in seen:
            seen[artifact.key] = _wrong(artifact)
        if reason := seen[artifact.key]:
            found[step] = reason
    return found


def _wrong(artifact: Artifact) -> str | None:
    try:
        artifact.verify(deep=True)
    except CorruptFile as error:
        return str(error)
    return None
