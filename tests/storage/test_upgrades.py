"""Markers of older Grafts are read; those of newer ones are refused with what to do."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from storage import upgrades
from storage.artifact import MARKER_SCHEMA, Artifact
from storage.errors import CorruptFile, NewerArtifact
from storage.folder import Folder
from storage.store import MARKER, Store, open_artifact

KEY = "0" * 64


class Rows(Artifact):
    kind = "Rows"


def marker(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": MARKER_SCHEMA,
        "kind": "Rows",
        "stage": "write_rows",
        "stage_version": "1",
        "key": KEY,
        "digest": "d",
        "data": "0",
        "config": {},
        "inputs": {},
        "external": {},
        "files": [],
        "environment": {},
        "seconds": 0.5,
        "created": "2026-01-01T00:00:00+00:00",
        **changes,
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def keep(store: Store, values: dict[str, Any]) -> Folder:
    folder = store.artifact_folder(KEY)
    folder.write(MARKER, json.dumps(values).encode())
    return folder


def test_a_marker_of_a_newer_graft_is_refused_and_never_taken_for_damage(store: Store) -> None:
    """Taken for damage, it would be made again, and written over."""
    folder = keep(store, marker(schema_version=MARKER_SCHEMA + 1, shape="of tomorrow"))
    message = (
        rf"newer Graft \(schema {MARKER_SCHEMA + 1}; this one reads up to {MARKER_SCHEMA}\): upgrade, or use another"
    )
    for look in (store.find, store.find_collected):
        folder.write_json("collected.json", {"created": ""})
        with pytest.raises(NewerArtifact, match=message):
            look(Rows, KEY)
    with pytest.raises(NewerArtifact, match=message):
        open_artifact(Rows, folder)
    with pytest.raises(NewerArtifact, match=message):
        store.marker(KEY)


def test_a_marker_of_an_older_graft_goes_through_every_upgrade(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_minus_one(values: dict[str, Any]) -> dict[str, Any]:
        seconds = values.pop("minutes") * 60
        return {**values, "schema_version": 0, "seconds": seconds}

    def from_nought(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "schema_version": 1, "kind": values["kind"].title()}

    monkeypatch.setattr(upgrades, "UPGRADES", {-1: from_minus_one, 0: from_nought})
    old = marker(schema_version=-1, kind="rows", minutes=2)
    old.pop("seconds")
    keep(store, old)
    found = store.find(Rows, KEY)
    assert found is not None and (found.marker.seconds, found.marker.schema_version) == (120, 1)


@pytest.mark.parametrize("schema", [0, -3, "one", None])
def test_a_schema_that_never_was_is_damage(store: Store, caplog: pytest.LogCaptureFixture, schema: object) -> None:
    keep(store, marker(schema_version=schema))
    with pytest.raises(CorruptFile, match=r"marker\.json must be a marker"):
        store.marker(KEY)
    with caplog.at_level(logging.WARNING):
        assert store.find(Rows, KEY) is None
    assert "not reused" in caplog.text


def test_every_schema_before_todays_has_an_upgrade() -> None:
    assert sorted(upgrades.UPGRADES) == list(range(1, MARKER_SCHEMA))
