"""Tar archives of an image folder: compressed or not, damaged, and never extracted."""

import gc
import io
import os
import tarfile
from itertools import islice
from pathlib import Path

import pytest

from storage.datasets.source import DatasetConfig, Source, open_source
from storage.folder import Folder
from storage.stat_cache import StatCache


def archive(path: Path, *names: str, mode: str = "w", links: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            data = b"" if name.endswith("/") else os.fsencode(f"bytes of {Path(name).name}")
            info.type, info.size = (tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE), len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return path


def opened(place: Path, *, split: str | None = None, **options) -> Source:
    return open_source(DatasetConfig(name="packed", format="tar", split=split, options=options), place=place)


def rows(source: Source) -> list[tuple]:
    return [(entry.name, entry.split, entry.label) for entry in source.entries()]


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_class_folders_are_numbered_in_order_and_images_keep_theirs(tmp_path, suffix, mode):
    source = opened(
        archive(tmp_path / f"a{suffix}", "./dog/b.png", "./cat/deep/1.JPG", "ant/", "dog/a.webp", mode=mode)
    )
    assert source.classes == ("ant", "cat", "dog")
    assert rows(source) == [("dog/b.png", None, 2), ("cat/deep/1.JPG", None, 1), ("dog/a.webp", None, 2)]
    assert len(source) == 3
    assert [entry.data for entry in source.entries(start=1)] == [b"bytes of 1.JPG", b"bytes of a.webp"]
    assert list(source.entries(start=3)) == []


def test_splits_and_classes_may_lie_below_a_root(tmp_path):
    path = archive(tmp_path / "a.tar", "top/train/cat/1.png", "top/val/cat/2.png", "top/val/dog/3.png", "top/note.txt")
    assert rows(opened(path, split="val", root="top")) == [
        ("top/val/cat/2.png", "val", 0),
        ("top/val/dog/3.png", "val", 1),
    ]
    with pytest.raises(ValueError, match=r"must be one of \['train', 'val'\] .*got 'test'"):
        opened(path, split="test", root="top")


def test_files_without_folders_have_no_labels(tmp_path):
    source = opened(archive(tmp_path / "a.tar", "2.png", "1.png"))
    assert (source.classes, rows(source)) == (None, [("2.png", None, None), ("1.png", None, None)])
    mixed = archive(tmp_path / "b.tar", "x/1.png", "2.png")
    with pytest.raises(ValueError, match=r"in class folders; got the file 2.png .*labels: false"):
        opened(mixed).classes  # noqa: B018
    assert rows(opened(mixed, labels=False)) == [("x/1.png", None, None), ("2.png", None, None)]


def test_links_hidden_files_and_other_files_are_passed_over(tmp_path):
    path = archive(tmp_path / "a.tar", "a/1.png", "a/._1.png", ".git/2.png", "a/list.txt", links=("a/3.png", "b/4.png"))
    assert rows(opened(path)) == [("a/1.png", None, 0)]


def test_names_that_climb_out_are_only_names(tmp_path):
    assert rows(opened(archive(tmp_path / "a.tar", "../up/1.png", "/etc/2.png"), labels=False)) == [
        ("../up/1.png", None, None), ("etc/2.png", None, None),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


def test_a_name_that_is_no_text_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="file names must be UTF-8"):
        opened(archive(tmp_path / "a.tar", "a/\udcff.png"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_that_is_cut_anywhere_is_an_error(tmp_path, mode):
    whole = archive(tmp_path / "a.tar", *(f"a/{number}.png" for number in range(3)), mode=mode).read_bytes()
    cuts = range(0, 3073, 128) if mode == "w" else (0, 1, len(whole) // 3, len(whole) - 9)
    # Inside a header, inside an image, and right between two members, which Python takes for the end.
    path = tmp_path / ("cut.tar" if mode == "w" else "cut.tgz")
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="must be an intact tar archive: .*Fetch it again"):
            opened(path)


def test_headers_do_not_pile_up_in_memory(tmp_path):
    source = opened(archive(tmp_path / "a.tar", *(f"a/{number}.png" for number in range(200))))
    entries = source.entries()
    assert len(list(islice(entries, 199))) == 199
    assert sum(type(one) is tarfile.TarInfo for one in gc.get_objects()) < 20
    assert next(entries).name == "a/199.png"


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(archive(tmp_path / "a.tar", "a/1.png", "a/2.png", "a/3.png").read_bytes())
    data[1024 + 3] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ValueError, match="intact tar archive: a damaged header"):
        opened(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["a.zip", "folder"])
def test_what_is_no_archive_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"must be a file .tar, .tar.gz or .tgz; got .*--data packed=PATH"):
        opened(path)


def test_the_fingerprint_follows_the_bytes_and_no_name(tmp_path):
    cache = StatCache(Folder(tmp_path / "home"))
    first = opened(archive(tmp_path / "a.tar", "a/1.png")).fingerprint(cache)
    assert opened((tmp_path / "a.tar").rename(tmp_path / "b.tar")).fingerprint(cache) == first
    assert opened(archive(tmp_path / "c.tar", "a/2.png")).fingerprint(cache) != first
