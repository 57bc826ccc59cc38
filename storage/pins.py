"""Pins: artifacts that are kept although no run uses them."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime

from storage.store import MARKER, Store

PINS = "pins"
KEY = re.compile("[0-9a-f]{64}")


def pin(store: Store, key: str, *, reason: str) -> None:
    """Keep the artifact of a key, whoever collects.

    Raises:
        ValueError: there is no such artifact, or its data is gone already.
    """
    _require_key(key)
    # Written first: a collector that is at this very artifact sees it, or has said before that it is collected.
    (store.folder / PINS).write_json(f"{key}.json", {"reason": reason, "created": datetime.now(UTC).isoformat()})
    if not store.artifact_folder(key).exists(MARKER) or store.is_collected(key):
        (store.folder / PINS).remove(f"{key}.json")
        raise ValueError(
            f"the artifact of {key} must be there to be pinned, and {store!r} has no data of it; "
            "see the keys of those that are: graft status RECIPE --keys"
        )


def unpin(store: Store, key: str) -> None:
    """Let go of a pinned artifact.

    Raises:
        ValueError: it is not pinned.
    """
    _require_key(key)
    if key not in pinned(store):
        raise ValueError(
            f"{key} must be pinned to be unpinned; pinned are: {', '.join(sorted(pinned(store))) or 'none'}"
        )
    (store.folder / PINS).remove(f"{key}.json")


def pinned(store: Store) -> dict[str, str]:
    """Key -> reason of every pin."""
    folder = store.folder / PINS
    pins = {}
    for name in folder.files():
        with suppress(FileNotFoundError):
            pins[name.removesuffix(".json")] = str(folder.read_json(name)["reason"])
    return pins


def _require_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise ValueError(f"a key must be 64 hexadecimal digits, see graft status --keys; got {key!r}")
