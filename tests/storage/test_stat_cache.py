"""Unchanged files are not read again; whatever happens to the cache, digests are right."""

import hashlib
import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from storage.folder import Folder
from storage.stat_cache import StatCache

LONG_AGO = 1_600_000_000


def put(path: Path, data: bytes, *, seconds: int = LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))
    return path


def digests(cache: StatCache, *paths: Path) -> list[str]:
    found = cache.digests(paths)
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return found


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "home" / "stat")


def test_unchanged_files_are_not_read_again(tmp_path, folder):
    paths = [put(tmp_path / name, name.encode()) for name in ("a/1", "a/2", "b/1")]
    first, second = StatCache(folder), StatCache(folder)
    assert digests(first, *paths) == digests(second, *paths)
    assert (first.hashed, second.hashed) == (3, 0)


def test_only_the_touched_file_is_read_again(tmp_path, folder):
    paths = [put(tmp_path / name, name.encode()) for name in ("1", "2")]
    digests(StatCache(folder), *paths)
    put(paths[0], b"1", seconds=LONG_AGO + 1)
    cache = StatCache(folder)
    digests(cache, *paths)
    assert cache.hashed == 1


def test_a_file_of_the_same_time_and_another_size_is_read_again(tmp_path, folder):
    path = put(tmp_path / "1", b"old")
    digests(StatCache(folder), path)
    digests(StatCache(folder), put(path, b"newer"))


def test_a_file_that_has_just_been_written_is_not_trusted(tmp_path, folder):
    path = tmp_path / "1"
    path.write_bytes(b"old")
    now = path.stat().st_mtime_ns
    digests(StatCache(folder), path)
    path.write_bytes(b"new")
    os.utime(path, ns=(now, now))  # changed twice within one tick of the clock
    digests(StatCache(folder), path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"1": 3}', b'{"1": [1]}', b"\xff\x00"])
def test_a_damaged_cache_is_made_again(tmp_path, folder, damage):
    path = put(tmp_path / "1", b"data")
    digests(StatCache(folder), path)
    (name,) = folder.files()
    folder.write(name, damage)
    again, third = StatCache(folder), StatCache(folder)
    digests(again, path)
    digests(third, path)
    assert (again.hashed, third.hashed) == (1, 0)


def test_what_another_process_noted_meanwhile_is_kept(tmp_path, folder, monkeypatch):
    one, other = put(tmp_path / "1", b"1"), put(tmp_path / "2", b"2")
    slow = StatCache(folder)
    save = slow._save
    monkeypatch.setattr(slow, "_save", lambda *given: (digests(StatCache(folder), other), save(*given)))
    digests(slow, one)
    third = StatCache(folder)
    digests(third, one, other)
    assert third.hashed == 0


def hash_often(folder: Path, paths: list[Path]) -> None:
    for path in paths * 20:
        os.utime(path, (LONG_AGO, LONG_AGO))
        digests(StatCache(Folder(folder)), path)


def test_processes_may_share_a_cache(tmp_path, folder):
    paths = [put(tmp_path / "data" / str(number), bytes([number])) for number in range(4)]
    context = get_context("fork")
    processes = [context.Process(target=hash_often, args=(folder.path, paths)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    digests(StatCache(folder), *paths)


def test_a_missing_file_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match="gone must be readable; the system says: No such file"):
        StatCache(folder).digests([tmp_path / "gone"])
