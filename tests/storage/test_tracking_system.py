"""Samples of the machine: there while a run goes on, and no trouble of theirs is the run's."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from storage import tracking_system
from storage.errors import LeaseLost, StoreUnwritable
from storage.folder import Folder
from storage.outbox import Outbox
from storage.tracking_system import SystemSampler

NAMES = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/disk_usage_percentage",
    "system/network_receive_megabytes",
}


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(Folder(tmp_path / "outbox"))


def test_the_machine_is_sampled_again_and_again_and_at_the_end(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_system, "SECONDS_BETWEEN_SAMPLES", 0.01)
    several = threading.Semaphore(0)
    sampler = SystemSampler(outbox, on_sample=several.release)
    for _ in range(3):
        assert several.acquire(timeout=60)
    before = outbox.state().samples
    sampler.close()
    samples = list(outbox.samples(after=0))
    assert len(samples) > before >= 3
    for number, rows in samples:
        assert {row.key for row in rows} >= NAMES
        assert {row.step for row in rows} == {number}
    times = [rows[0].timestamp for _, rows in samples]
    assert times == sorted(times)


def test_a_step_shorter_than_the_pause_has_one_sample(outbox: Outbox) -> None:
    SystemSampler(outbox, on_sample=lambda: None).close()
    assert [number for number, _ in outbox.samples(after=0)] == [1]


@pytest.mark.parametrize(
    ("error", "calls", "warnings"), [(StoreUnwritable("full"), 3, 0), (LeaseLost("lost"), 1, 0), (KeyError("x"), 1, 1)]
)
def test_a_sample_that_cannot_be_kept_stops_no_work(
    outbox: Outbox,
    error: Exception,
    calls: int,
    warnings: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracking_system, "SECONDS_BETWEEN_SAMPLES", 0.01)
    called, enough = [], threading.Event()

    def refuse(_: object) -> None:
        called.append(1)
        if len(called) == calls:
            enough.set()
        raise error

    monkeypatch.setattr(outbox, "sample", refuse)
    with caplog.at_level(logging.WARNING):
        sampler = SystemSampler(outbox, on_sample=lambda: pytest.fail("nothing was kept"))
        assert enough.wait(60)
        sampler.close()
    assert len(caplog.records) == warnings
    # Only a full disk is tried again.
    assert len(called) > calls if calls > 1 else len(called) == 1
