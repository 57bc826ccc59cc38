"""Copies of objects: within the limit, the least recently used go first, and one that is open stays."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from storage.folder import FileRecord
from storage.read_cache import ReadCache

KB = 1000


@pytest.fixture
def cache(tmp_path: Path) -> ReadCache:
    return ReadCache(tmp_path / "objects", limit_bytes=10 * KB)


def content(name: str, size: int = KB) -> bytes:
    return (name.encode() * size)[:size]


def record_of(name: str, size: int = KB) -> FileRecord:
    return FileRecord(f"{name}.bin", size, hashlib.sha256(content(name, size)).hexdigest())


def add(cache: ReadCache, name: str, size: int = KB) -> None:
    with cache.add(f"{name}.bin", lambda take: take(iter([content(name, size)]))) as (path, record):
        assert path.read_bytes() == content(name, size) and record == record_of(name, size)


def has(cache: ReadCache, name: str, size: int = KB) -> bool:
    with cache.find(record_of(name, size)) as path:
        return path is not None


def held(cache: ReadCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.rglob("*") if len(path.stem) == 64)


def test_a_copy_is_found_by_its_content_whatever_it_is_called(cache: ReadCache) -> None:
    assert not has(cache, "a")
    add(cache, "a")
    with cache.find(record_of("a")._replace(path="other/name.bin")) as path:
        assert path is not None and path.read_bytes() == content("a") and path.suffix == ".bin"


def test_the_limit_holds_and_the_least_recently_used_goes_first(cache: ReadCache) -> None:
    names = [chr(ord("a") + number) for number in range(10)]
    for number, name in enumerate(names):
        add(cache, name)
        with cache.find(record_of(name)) as path:
            assert path is not None
            # Clocks of file systems are coarse.
        os.utime(path, ns=(number, number))
    assert held(cache) == 10 * KB and has(cache, "a")
    add(cache, "z")
    assert held(cache) <= 10 * KB
    assert has(cache, "z") and has(cache, "a") and not has(cache, "b")
    for number in range(30):
        add(cache, f"more {number}")
        assert held(cache) <= 10 * KB


def test_a_copy_that_is_open_stays(cache: ReadCache) -> None:
    add(cache, "a")
    with cache.find(record_of("a")) as path:
        assert path is not None
        os.utime(path, ns=(0, 0))
        for number in range(20):
            add(cache, f"more {number}")
        assert path.read_bytes() == content("a")
    assert held(cache) <= 10 * KB


def test_a_copy_that_is_just_being_read_by_its_maker_stays(cache: ReadCache) -> None:
    with cache.add("a.bin", lambda take: take(iter([content("a")]))) as (path, _):
        os.utime(path, ns=(0, 0))
        for number in range(20):
            add(cache, f"more {number}")
        assert path.read_bytes() == content("a")


def test_what_is_larger_than_the_limit_can_be_read_and_goes_next(cache: ReadCache) -> None:
    add(cache, "small")
    add(cache, "large", size=25 * KB)
    assert not has(cache, "small")
    add(cache, "small")
    assert not has(cache, "large", size=25 * KB) and held(cache) <= 10 * KB


def test_a_transfer_that_breaks_begins_again_and_one_that_fails_leaves_nothing(cache: ReadCache) -> None:
    def breaks(take):
        with pytest.raises(ConnectionError):
            take(fail_after(b"half of something else"))
        return take(iter([content("a")]))

    def fail_after(block):
        yield block
        raise ConnectionError

    with cache.add("a.bin", breaks) as (path, record):
        assert path.read_bytes() == content("a") and record == record_of("a")
    with pytest.raises(ConnectionError), cache.add("b.bin", lambda take: take(fail_after(b"half"))):
        pass
    assert held(cache) == KB and not [path for path in cache.folder.iterdir() if len(path.name) == 33]


def test_what_a_killed_process_left_half_fetched_goes_like_any_other(cache: ReadCache) -> None:
    add(cache, "a")
    left = cache.folder / f".{'0' * 32}"
    left.write_bytes(bytes(9 * KB))
    os.utime(left, ns=(0, 0))
    for number in range(20):
        add(cache, f"more {number}")
    assert not left.exists() and held(cache) <= 10 * KB


def test_a_copy_that_was_cut_short_is_no_copy(cache: ReadCache) -> None:
    add(cache, "a")
    with cache.find(record_of("a")) as path:
        assert path is not None
    path.write_bytes(b"short")
    assert not has(cache, "a")
    add(cache, "a")
    assert has(cache, "a")


def test_it_may_be_removed_at_any_time(cache: ReadCache) -> None:
    import shutil

    add(cache, "a")
    shutil.rmtree(cache.folder)
    assert not has(cache, "a")
    add(cache, "a")
    assert has(cache, "a")
