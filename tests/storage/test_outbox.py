"""Outboxes: what is kept, what is sent, and what a resume finds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.folder import Folder
from storage.limits import PARAM_CHARACTERS, fit
from storage.outbox import Outbox, RunRecord
from storage.receipts import scrubbed, without_secrets


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "outbox")


def record(uid: str = "a1", **changes: object) -> RunRecord:
    fields = {"uid": uid, "name": "train", "experiment": "e", "start_time": 1_000}
    return RunRecord.model_validate(fields | changes)


def sent(outbox: Outbox, *, after: int = 0) -> list[tuple[str, float, int]]:
    return [(row.key, row.value, row.step) for _, rows in outbox.rows(after=after) for row in rows]


def test_opening_again_keeps_the_first_record(folder: Folder) -> None:
    assert Outbox(folder).open(record("a1", params={"lr": "1"})) == record("a1", params={"lr": "1"})
    assert Outbox(folder).open(record("b2")).uid == "a1"
    assert Outbox(folder).record() == record("a1", params={"lr": "1"})


def test_samples_of_the_machine_wait_for_no_checkpoint_and_are_never_dropped(folder: Folder) -> None:
    outbox = Outbox(folder)
    outbox.open(record())
    states = [outbox.state()]
    for value in (1.0, 2.0):
        outbox.sample({"system/cpu": value})
        states.append(outbox.state())
    resumed = Outbox(folder)
    resumed.truncate(0)
    resumed.sample({"system/cpu": 3.0})
    rows = [row for _, rows in Outbox(folder).samples(after=1) for row in rows]
    assert [(row.key, row.value, row.step) for row in rows] == [("system/cpu", 2.0, 2), ("system/cpu", 3.0, 3)]
    assert len({state.model_dump_json() for state in [*states, resumed.state()]}) == 4
    with pytest.raises(ValueError, match="Rename it"):
        resumed.sample({"a=b": 1.0})


def test_opening_again_takes_the_end_back(folder: Folder) -> None:
    outbox = Outbox(folder)
    outbox.open(record())
    outbox.finish("FAILED")
    assert outbox.end() is not None
    Outbox(folder).open(record())
    assert Outbox(folder).end() is None


def test_rows_wait_for_the_release_of_their_checkpoint(folder: Folder) -> None:
    outbox = Outbox(folder)
    outbox.log({"loss": 1.0}, step=1)
    assert list(folder.files()) == []
    position = outbox.commit()
    assert sent(outbox) == []
    outbox.release(position)
    assert sent(outbox) == [("loss", 1.0, 1)]
    assert sent(outbox, after=position) == []


def test_a_commit_without_rows_moves_nothing(folder: Folder) -> None:
    outbox = Outbox(folder)
    assert outbox.commit() == 0
    outbox.log({"loss": 1.0}, step=1)
    assert [outbox.commit(), outbox.commit()] == [1, 1]
    assert Outbox(folder).commit() == 1


def test_truncate_drops_what_the_checkpoint_does_not_stand_for(folder: Folder) -> None:
    outbox = Outbox(folder)
    for step in (1, 2, 3):
        outbox.log({"loss": float(step)}, step=step)
        position = outbox.commit()
        if step == 1:
            outbox.release(position)
    resumed = Outbox(folder)
    # Killed between the checkpoint of position 2 and its release.
    resumed.truncate(2)
    assert sent(resumed) == [("loss", 1.0, 1), ("loss", 2.0, 2)]
    resumed.log({"loss": 3.5}, step=3)
    resumed.release(resumed.commit())
    assert sent(resumed) == [("loss", 1.0, 1), ("loss", 2.0, 2), ("loss", 3.5, 3)]


def test_truncate_forgets_rows_that_are_not_committed(folder: Folder) -> None:
    outbox = Outbox(folder)
    outbox.log({"loss": 1.0}, step=1)
    outbox.truncate(0)
    assert outbox.commit() == 0


def test_a_resume_before_released_rows_does_not_log_them_twice(folder: Folder) -> None:
    outbox = Outbox(folder)
    for step in (1, 2):
        outbox.log({"loss": float(step)}, step=step)
        outbox.release(outbox.commit())
    resumed = Outbox(folder)
    resumed.truncate(0)
    for step in (1, 2, 3):
        resumed.log({"loss": float(step), "new": 0.0}, step=step)
    resumed.release(resumed.commit())
    assert [row for row in sent(resumed) if row[0] == "loss"] == [("loss", float(step), step) for step in (1, 2, 3)]
    assert [row for row in sent(resumed) if row[0] == "new"] == [("new", 0.0, step) for step in (1, 2, 3)]


def test_rows_keep_every_digit_and_the_time_of_their_logging(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(folder)
    for now, value in ((5, 0.1 + 0.2), (6, math.inf), (7, math.nan)):
        monkeypatch.setattr("storage.outbox.now_ms", lambda now=now: now)
        outbox.log({"loss": value}, step=0)
    outbox.release(outbox.commit())
    rows = [row for _, rows in Outbox(folder).rows(after=0) for row in rows]
    assert [row.timestamp for row in rows] == [5, 6, 7]
    assert [rows[0].value, rows[1].value] == [0.1 + 0.2, math.inf]
    assert math.isnan(rows[2].value)


@pytest.mark.parametrize(("status", "steps"), [("FINISHED", [1, 2, 3]), ("FAILED", [1]), ("KILLED", [1])])
def test_only_a_finished_run_keeps_rows_past_its_checkpoint(folder: Folder, status: str, steps: list[int]) -> None:
    outbox = Outbox(folder)
    for step in (1, 2, 3):
        outbox.log({"loss": 0.0}, step=step)
        if step == 1:
            outbox.release(outbox.commit())
        if step == 2:
            outbox.commit()
    outbox.finish(status)
    assert [row[2] for row in sent(Outbox(folder))] == steps


def test_of_tags_of_one_name_the_last_counts(folder: Folder) -> None:
    outbox = Outbox(folder)
    outbox.add_tags({"a": "1", "b": "1"})
    outbox.finish("FAILED", tags={"a": "2"})
    outbox.mark_step("cluster", key="k")
    assert Outbox(folder).tags() == {"a": "2", "b": "1", "step.cluster.key": "k"}


def test_every_addition_changes_the_state(folder: Folder) -> None:
    outbox = Outbox(folder)
    outbox.open(record())
    states = [outbox.state()]
    outbox.add_tags({"a": "1"})
    states.append(outbox.state())
    outbox.add_tags({"a": "1"})
    states.append(outbox.state())
    outbox.log({"loss": 1.0}, step=0)
    outbox.release(outbox.commit())
    states.append(outbox.state())
    outbox.finish("FINISHED", files={"marker.json": "/x/marker.json"})
    states.append(outbox.state())
    assert len({state.model_dump_json() for state in states}) == 5
    assert outbox.state() == Outbox(folder).state()


@pytest.mark.parametrize("name", ["", "a\nb", "a=b", "../a", "/a", "a//b", ".", "a/", "x" * 251])
def test_a_name_that_mlflow_refuses_is_refused_at_once(folder: Folder, name: str) -> None:
    outbox = Outbox(folder)
    with pytest.raises(ValueError, match="Rename it"):
        outbox.log({name: 1.0}, step=0)
    with pytest.raises(ValueError, match="Rename it"):
        outbox.add_tags({name: "1"})
    for field in ({"params": {name: "1"}}, {"tags": {name: "1"}}, {"name": name}):
        with pytest.raises(ValidationError, match="Rename it"):
            record(**field)
    assert outbox.commit() == 0


def test_a_shortened_value_tells_the_whole() -> None:
    long = "x" * 7_000
    assert fit("x" * PARAM_CHARACTERS, limit=PARAM_CHARACTERS) == "x" * PARAM_CHARACTERS
    assert len(fit(long, limit=PARAM_CHARACTERS)) == PARAM_CHARACTERS
    assert fit(long, limit=PARAM_CHARACTERS) != fit(long + "y", limit=PARAM_CHARACTERS)


def test_secrets_leave_uris_and_messages() -> None:
    uri = "http://ann:p%40ss@host:5000/base?token=t"
    assert without_secrets(uri) == "http://host:5000/base"
    assert without_secrets("sqlite:////home/me/mlflow.db") == "sqlite:////home/me/mlflow.db"
    message = scrubbed(f"request to {uri} failed, password p%40ss", uri=uri)
    assert "p%40ss" not in message and "ann" not in message
