"""The write door: a file is whole or absent, whatever happens in the middle of a write."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from storage.errors import CorruptFile, StoreUnwritable
from storage.folder import Folder, canonical_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "kept")


def everything(folder: Folder) -> list[str]:
    """All names on disk, temporary ones too."""
    return sorted(path.name for path in folder.path.rglob("*") if path.is_file())


def test_a_record_says_what_lies_on_disk(folder):
    record = folder.write("a/b/rows.bin", b"some rows")
    assert record == ("a/b/rows.bin", 9, hashlib.sha256(b"some rows").hexdigest())
    assert record == folder.record("a/b/rows.bin")
    assert folder.read("a/b/rows.bin") == b"some rows"
    assert (folder / "a" / "b").read("rows.bin") == b"some rows"


def test_a_record_counts_bytes_and_not_the_items_of_a_view(folder):
    record = folder.write("rows.bin", memoryview(np.arange(5, dtype=np.float32)))
    assert record == folder.record("rows.bin") and record.size == 20


def test_files_are_sorted_and_writes_under_way_are_left_out(folder):
    for name in ("b.bin", "a/z.bin", "a/y.bin"):
        folder.write(name, b"x")
    (folder.path / "a" / ".writing-1234").write_bytes(b"half")
    assert sorted(folder.files()) == ["a/y.bin", "a/z.bin", "b.bin"]
    assert list(folder.files()) == list(folder.files())


def test_removing_what_is_not_there_does_nothing(folder):
    folder.write("a.bin", b"x")
    folder.remove("a.bin")
    folder.remove("a.bin")
    assert not folder.exists("a.bin")
    with pytest.raises(FileNotFoundError):
        folder.read("a.bin")


def test_json_has_one_spelling(folder):
    folder.write_json("a.json", {"b": [1, 2.5, None], "a": "é"})
    folder.write_json("b.json", {"a": "é", "b": [1, 2.5, None]})
    assert folder.read("a.json") == folder.read("b.json")
    assert folder.read_json("a.json") == {"a": "é", "b": [1, 2.5, None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_standard_spelling_is_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"loss": value})


def test_json_that_is_cut_short_is_named(folder):
    folder.write("facts.json", b'{"a": 1')
    with pytest.raises(CorruptFile, match=r"facts\.json must hold JSON"):
        folder.read_json("facts.json")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(folder, monkeypatch, call):
    folder.write("a.bin", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StoreUnwritable, match=r"No space left on device.*committed is kept.*GRAFT_STORE"):
        folder.write("a.bin", b"new")
    assert folder.read("a.bin") == b"old" and everything(folder) == ["a.bin"]


def test_a_write_that_is_interrupted_leaves_nothing(folder, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.write("a.bin", b"new")
    assert everything(folder) == []


def test_bytes_are_on_disk_before_they_have_their_name_and_then_the_name_is(folder, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append("fsync"), fsync(number))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths))[1])
    folder.write("a.bin", b"new")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_killed_writer_leaves_no_half_file(folder):
    program = (
        "import os, signal, sys\n"
        "from storage.folder import Folder\n"
        "os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Folder(sys.argv[1]).write('a.bin', b'new ' * 1000)\n"
    )
    folder.write("a.bin", b"old")
    done = subprocess.run([sys.executable, "-c", program, str(folder.path)], cwd=ROOT, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert len(everything(folder)) == 2, "it was killed in the middle of its write"
    assert folder.read("a.bin") == b"old" and list(folder.files()) == ["a.bin"]
