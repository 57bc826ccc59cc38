"""The stage engine in trouble: damage is named or made good, what lies elsewhere is found or passed over."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Artifact
from storage.errors import CorruptFile, LeaseLost
from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecorder


def damage(artifact: Artifact, name: str, content: bytes | None) -> Path:
    path = artifact.folder.path / name
    path.unlink() if content is None else path.write_bytes(content)
    return path


def test_a_damaged_input_is_named_before_anything_is_computed(shop) -> None:
    rows = shop.write().artifact
    path = damage(rows, "2.txt", b"xx")
    remedy = r"--force on the step that makes it \(stage write_rows\)"
    with pytest.raises(CorruptFile, match=rf"{path} of Rows\(.*{remedy}"):
        shop.spell(rows)
    assert shop.done == list(shop.units) and shop.left() == []
    shop.write(force=True)
    assert shop.spell(shop.write().artifact).artifact.read() == ["a0!", "a1!", "a2!", "a3!"]


@pytest.mark.parametrize("content", [None, b"", b"a", b"a22"])
def test_an_artifact_that_is_not_whole_is_made_again_and_a_warning_says_why(
    shop, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    old = shop.write().artifact
    path = damage(old, "2.txt", content)
    shop.go_on()
    with caplog.at_level(logging.WARNING):
        again = shop.write()
    assert not again.reused and shop.done == list(shop.units) and again.artifact.digest == old.digest
    assert caplog.messages and all(str(path) in message for message in caplog.messages)
    assert shop.write().reused


class Elsewhere(NoRecorder):
    """A MLflow that knows of artifacts."""

    def __init__(self, *uris: str) -> None:
        self._uris = uris

    def find(self, key: str) -> list[str]:
        return list(self._uris)


def test_an_artifact_in_another_store_is_found_by_what_was_recorded(shop) -> None:
    there = shop.write(context=shop.context(home=shop.folder / "another machine's")).artifact
    shop.go_on()
    found = shop.write(context=shop.context(recorder=Elsewhere(there.uri)))
    assert found.reused and shop.done == [] and found.artifact.marker == there.marker
    assert not shop.store.root.exists(), "nothing was copied"
    below = shop.spell(found.artifact)
    assert below.artifact.read() == ["a0!", "a1!", "a2!", "a3!"]


@pytest.mark.parametrize("uri", ["file:///no/such/folder", "s3://bucket/artifacts/12", "dbfs:/artifacts/12"])
def test_a_record_of_what_cannot_be_had_is_passed_over_with_a_warning(
    shop, caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    with caplog.at_level(logging.WARNING):
        result = shop.write(context=shop.context(recorder=Elsewhere(uri)))
    assert not result.reused and result.artifact.read()[0] == "a0"
    assert f"MLflow knows of {uri}, which is not usable" in caplog.text


def test_a_usable_record_behind_an_unusable_one_is_found(shop) -> None:
    there = shop.write(context=shop.context(home=shop.folder / "another")).artifact
    broken = shop.write(context=shop.context(home=shop.folder / "broken")).artifact
    damage(broken, "0.txt", None)
    shop.go_on()
    found = shop.write(context=shop.context(recorder=Elsewhere(broken.uri, there.uri)))
    assert found.reused and found.artifact.folder.path == there.folder.path


@pytest.mark.parametrize("force", [False, True])
def test_what_another_process_made_while_this_one_waited_is_taken(
    shop, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    lease = Store.lease

    def late(self: Store, key: str, **settings: Any) -> Any:
        # Another process gets in between looking and locking.
        monkeypatch.setattr(Store, "lease", lease)
        shop.write(force=force)
        return lease(self, key, **settings)

    if force:
        shop.write()
        shop.go_on()
    monkeypatch.setattr(Store, "lease", late)
    result = shop.write(force=force)
    assert result.reused and shop.done == list(shop.units)


def test_who_lost_the_lease_leaves_no_artifact(shop) -> None:
    store = shop.store

    def lose(unit: str) -> None:
        if unit == "write/3":
            (lease,) = (store.root / "leases").glob("*.json")
            Folder(lease.parent).write_json(lease.name, {"token": "other"})

    shop.between = lose
    with pytest.raises(LeaseLost, match="Run the same command again"):
        shop.write()
    assert list(store.complete()) == []
