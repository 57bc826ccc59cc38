"""Couriers: they send what is there, hold nobody up, and say what waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.courier import Courier
from storage.outbox import Outbox
from storage.tracking import Tracking, TrackingAway


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_refusal_shows_no_secret(desk: Any, tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture) -> None:
    outbox = desk.open()
    desk.log_steps(outbox, 0)
    closed = Tracking(
        "http://ann:s3cret@127.0.0.1:9/?token=s3cret", artifact_location=None, init_lock=tmp_path / "lock"
    )
    courier = Courier(closed, outbox)
    assert not courier.close(timeout=60)
    assert isinstance(courier.error, TrackingAway)
    assert courier.error.__cause__ is None and "127.0.0.1:9" in str(courier.error)
    known = Tracking(f"http://ann:s3cret@127.0.0.1:{server.port}", artifact_location=None, init_lock=tmp_path / "lock")
    assert known.deliver(outbox)
    kept = [outbox.folder.read(name).decode() for name in outbox.folder.files()]
    run = desk.run_of(server.tracking, outbox).to_dictionary()
    url = known.page_of(outbox)
    for text in (caplog.text, str(courier.error), closed.uri, str(kept), str(run), str(url)):
        assert "s3cret" not in text and "ann:" not in text


def test_a_courier_sends_after_each_signal(desk: Any, sqlite: Tracking) -> None:
    outbox = desk.open()
    courier = Courier(sqlite, outbox)
    for step in range(2):
        desk.log_steps(outbox, step)
        courier.signal()
        wait_until(lambda: sqlite.receipts.is_complete(outbox, parent=None))
        desk.assert_each_row_once(sqlite, outbox, steps=list(range(step + 1)))
    outbox.finish("FINISHED")
    assert courier.close(timeout=60)
    assert desk.run_of(sqlite, outbox).info.status == "FINISHED"


def test_an_end_that_comes_during_a_delivery_is_sent_by_the_close(
    desk: Any, sqlite: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = desk.open()
    deliver, begun, go_on = sqlite.deliver, threading.Event(), threading.Event()

    def deliver_slowly(box: Outbox, *, parent: Outbox | None) -> bool:
        done = deliver(box, parent=parent)
        begun.set()
        return go_on.wait(60) and done

    monkeypatch.setattr(sqlite, "deliver", deliver_slowly)
    courier = Courier(sqlite, outbox)
    courier.signal()
    assert begun.wait(60)
    outbox.finish("FINISHED")
    threading.Timer(0.2, go_on.set).start()
    assert courier.close(timeout=60)
    assert desk.run_of(sqlite, outbox).info.status == "FINISHED"


def test_a_courier_that_hangs_holds_nobody_up(
    desk: Any, sqlite: Tracking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    outbox = desk.open()
    desk.log_steps(outbox, 0, 1)
    monkeypatch.setattr(sqlite, "deliver", lambda *_, **__: release.wait())
    started = time.monotonic()
    courier = Courier(sqlite, outbox)
    courier.signal()
    assert not courier.close(timeout=0.2)
    assert time.monotonic() - started < 5
    assert "4 metric rows wait" in caplog.text
    release.set()


def test_an_outage_loses_nothing_and_doubles_nothing(
    desk: Any, server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = server.tracking
    outbox = desk.open()
    desk.log_steps(outbox, 0, 1, 2)
    keep = tracking.receipts.keep

    def keep_until_the_second_commit(box: Outbox, receipt: Any) -> None:
        if receipt.position == 2:
            server.stop()
            return
        keep(box, receipt)

    with monkeypatch.context() as killed:
        killed.setattr(tracking.receipts, "keep", keep_until_the_second_commit)
        with pytest.raises(TrackingAway):
            tracking.deliver(outbox)
    courier = Courier(tracking, outbox)
    desk.log_steps(outbox, 3)
    courier.signal()
    wait_until(lambda: courier.error is not None)
    outbox.finish("FINISHED")
    assert not courier.close(timeout=60)
    said = [entry.getMessage() for entry in caplog.records if entry.name == "storage.courier"]
    assert len(said) == 2 and "6 metric rows wait" in said[1] and str(outbox.folder.path) in said[1]

    server.launch()
    server.wait()
    # The next run, which knows of this one by its files alone.
    assert server.tracking.deliver(Outbox(outbox.folder))
    assert desk.run_of(tracking, outbox).info.status == "FINISHED"
    desk.assert_each_row_once(tracking, outbox, steps=[0, 1, 2, 3])
