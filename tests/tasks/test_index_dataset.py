"""The stage from files to rows: once, resumed, reused, and refused."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.dataset_index import DatasetIndex
from storage.images import decode, image_hash
from storage.store import Store
from tasks import index_dataset as module
from tasks.index_dataset import IndexDatasetConfig, index_dataset, source_digests
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, StageResult, run_stage

LONG_AGO = 1_600_000_000


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2 + number % 3, 4, 3), number, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return root


@pytest.fixture
def photos(tmp_path):
    return put(tmp_path / "photos", {f"{'ab'[number % 2]}/{number}.png": png(number) for number in range(10)})


@pytest.fixture
def index(tmp_path, photos) -> Callable[..., StageResult[DatasetIndex]]:
    def run(*, place: Path = photos, home: str = "home", workers: int = 0, **settings):
        runtime = Runtime(home=tmp_path / home, workers=workers, data={"photos": place})
        context = Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())
        defaults = {"name": "photos", "format": "image_folder", "shard_rows": 3}
        config = IndexDatasetConfig(**defaults | settings)
        return run_stage(index_dataset, config, inputs={}, context=context)

    return run


@pytest.fixture
def probed(monkeypatch) -> list[bytes]:
    """The images that were decoded."""
    seen: list[bytes] = []
    probe = module.probe
    monkeypatch.setattr(module, "probe", lambda data: (seen.append(data), probe(data))[1])
    return seen


def test_every_image_becomes_a_row_once(index, probed):
    artifact = index().artifact
    assert artifact.num_rows == len(set(artifact.row_ids())) == len(probed) == 10
    labels = dict(zip(artifact.names(), artifact.labels(), strict=True))
    assert labels == {f"{'ab'[number % 2]}/{number}.png".encode(): number % 2 for number in range(10)}


def test_a_second_run_reuses_and_reads_no_file(index, probed, monkeypatch):
    first = index()
    monkeypatch.setattr("storage.stat_cache.sha256_of", lambda path: pytest.fail(f"{path} was read"))
    assert (first.reused, index().reused, len(probed)) == (False, True, 10)


def test_shards_and_workers_change_nothing(index):
    digests = {
        index().artifact.digest,
        index(home="b", shard_rows=100).artifact.digest,
        index(home="c", workers=2).artifact.digest,
    }
    assert len(digests) == 1


@pytest.mark.parametrize("survived", [0, 1, 3])
def test_a_killed_run_goes_on_after_its_last_shard(index, probed, monkeypatch, survived):
    uninterrupted = index(home="other").artifact.digest
    probed.clear()
    inspect = module._inspect

    def killed(entries, *, prober):
        if len(probed) >= 3 * survived:
            raise KeyboardInterrupt
        return inspect(entries, prober=prober)

    monkeypatch.setattr(module, "_inspect", killed)
    with pytest.raises(KeyboardInterrupt):
        index()
    monkeypatch.setattr(module, "_inspect", inspect)
    assert len(probed) == 3 * survived
    assert index().artifact.digest == uninterrupted
    assert len(probed) == 10


def test_changed_bytes_are_indexed_anew_and_touched_files_are_not(index, photos, probed):
    before = index().artifact
    os.utime(photos / "a" / "0.png", (LONG_AGO + 5, LONG_AGO + 5))
    assert index().reused
    put(photos, {"a/0.png": png(77)})
    os.utime(photos / "a" / "0.png", (LONG_AGO + 9, LONG_AGO + 9))
    after = index()
    assert not after.reused and after.artifact.digest != before.digest


def test_renamed_files_give_the_same_content(index, photos):
    before = index().artifact
    (photos / "a" / "0.png").rename(photos / "a" / "zero.png")
    after = index()
    assert not after.reused and after.artifact.digest == before.digest
    reader = after.artifact.images(photos, photos / "unused")
    hashes = [image_hash(reader.read(row)) for row in range(10)]
    assert hashes == [row_id[:32].decode() for row_id in after.artifact.row_ids()]


def test_too_many_unreadable_images_are_an_error_with_examples(index, photos):
    put(photos, {"a/bad.png": b"no image", "b/empty.png": b""})
    with pytest.raises(ValueError, match=r"most 1.00% .*; 2 of 12 images .*a/bad.png: .*b/empty.png: the"):
        index()
    with pytest.raises(ValueError, match="at most 16.60%"):
        index(max_unreadable=0.166)
    artifact = index(max_unreadable=0.167).artifact
    assert (artifact.num_rows, sorted(artifact.quarantine())) == (10, ["a/bad.png", "b/empty.png"])


def test_a_dataset_without_one_readable_image_is_an_error(index, tmp_path):
    with pytest.raises(ValueError, match="1 of 1 images"):
        index(place=put(tmp_path / "bad", {"a/1.png": b"x"}), max_unreadable=1.0)


def test_a_dataset_that_changes_meanwhile_is_refused(index, photos, monkeypatch):
    inspect = module._inspect

    def changing(entries, *, prober):
        put(photos, {"a/0.png": png(99)})
        os.utime(photos / "a" / "0.png", (LONG_AGO + 9, LONG_AGO + 9))
        return inspect(entries, prober=prober)

    monkeypatch.setattr(module, "_inspect", changing)
    with pytest.raises(ValueError, match="must not change while it is indexed"):
        index()


def test_a_missing_place_is_one_line(index, tmp_path):
    with pytest.raises(ValueError, match="^the place of dataset 'photos' must be .*--data photos=PATH$"):
        index(place=tmp_path / "gone")


def test_the_key_follows_the_bytes_and_the_place_does_not_matter(photos, tmp_path):
    config = IndexDatasetConfig(name="photos", format="image_folder")

    def digest(place: Path) -> dict[str, str]:
        return source_digests(config, Runtime(home=tmp_path / "home", data={"photos": place}))

    photos_digest = digest(photos)
    moved = photos.rename(tmp_path / "moved")
    assert digest(moved) == photos_digest and set(photos_digest) == {"source"}


def test_parquet_rows_are_packed_and_survive_eviction(index, tmp_path):
    images = [{"bytes": png(number) if number != 4 else b"", "path": ""} for number in range(10)]
    features = {"label": {"_type": "ClassLabel", "names": ["even", "odd"]}}
    table = pa.table({"image": images, "label": [number % 2 for number in range(10)]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables" / "train-00000-of-00001.parquet"
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    artifact = index(place=path.parent, format="parquet", split="train", max_unreadable=0.1).artifact
    assert (artifact.num_rows, artifact.classes) == (9, ("even", "odd"))

    cache = tmp_path / "home" / "cache"
    first = artifact.images(path.parent, cache)
    read = [first.read(row) for row in range(9)]
    assert [image_hash(data) for data in read] == [one[:32].decode() for one in artifact.row_ids()]
    assert [decode(data)[0, 0, 0] % 2 for data in read] == artifact.labels().tolist()
    piece = cache / "images" / artifact.key / "000000.bin"
    packed = piece.read_bytes()
    piece.unlink()
    assert [artifact.images(path.parent, cache).read(row) for row in range(9)] == read
    assert piece.read_bytes() == packed
    # While the copy is there, nobody needs the source.
    assert artifact.images(None, cache).read(0) == read[0]


def test_installed_photographs_need_no_place(index, tmp_path):
    parts = [["china"], ["flower", "rocket"]]
    dataset = {"name": "crops", "format": "package_photographs", "split": "train"}
    options = [{"stride": 32, "photographs": names} for names in parts]
    clustered, labelled = (index(**dataset, options=one).artifact for one in options)
    assert labelled.classes == ("flower", "rocket") and clustered.classes == ("china",)
    assert not set(clustered.row_ids()) & set(labelled.row_ids())
    assert decode(labelled.images(None, tmp_path / "cache").read(0)).shape == (32, 32, 3)


def hashes(artifact: DatasetIndex) -> set[bytes]:
    return {row_id[:32] for row_id in artifact.row_ids()}


def test_fractions_of_one_seed_share_no_image_and_leave_none_out(index, photos):
    put(photos, {f"{'ab'[number % 2]}/{number} again.png": png(number) for number in range(6)})
    whole = index().artifact
    parts = [
        index(fraction={"start": start, "stop": stop}).artifact for start, stop in ((0, 0.3), (0.3, 0.9), (0.9, 1))
    ]
    assert sum(part.num_rows for part in parts) == whole.num_rows == 16
    ids = [row_id for part in parts for row_id in part.row_ids()]
    assert sorted(ids) == whole.row_ids().tolist()
    assert sum(len(hashes(part)) for part in parts) == 10
    assert hashes(index(fraction={"stop": 0.3, "seed": 1}).artifact) != hashes(parts[0])


def test_names_order_and_other_images_do_not_change_who_is_in_a_fraction(index, photos, tmp_path):
    half = {"stop": 0.5}
    before = hashes(index(fraction=half).artifact)
    renamed = {f"{'ab'[number % 2]}/{9 - number} x.png": png(number) for number in (0, 2, 4, 5, 7, 9)}
    few = index(place=put(tmp_path / "few", renamed), fraction=half).artifact
    assert hashes(few) == before & {image_hash(data).encode() for data in renamed.values()}


def test_a_fraction_of_a_table_is_packed_from_its_own_rows(index, tmp_path):
    (tmp_path / "tables").mkdir()
    images = [{"bytes": png(number), "path": ""} for number in range(30)]
    pq.write_table(pa.table({"image": images, "label": list(range(30))}), tmp_path / "tables" / "train.parquet")
    part = index(place=tmp_path / "tables", format="parquet", fraction={"start": 0.4}).artifact
    assert 0 < part.num_rows < 30
    reader = part.images(tmp_path / "tables", tmp_path / "cache")
    assert [decode(reader.read(row))[0, 0, 0] for row in range(part.num_rows)] == part.labels().tolist()


def test_a_fraction_is_in_the_key_and_none_is_not(index):
    assert "fraction" not in index().artifact.marker.config
    part = index(fraction={"stop": 0.9})
    assert not part.reused and part.artifact.marker.config["fraction"] == {"start": 0.0, "stop": 0.9, "seed": 0}
    assert part.artifact.source.fraction is not None


def test_fractions_that_hold_nothing_are_errors(index):
    with pytest.raises(ValueError, match=r"from 0.0 to 1e-09 \(seed 0\) it holds none. Widen it"):
        index(fraction={"stop": 1e-9})
    with pytest.raises(ValueError, match="start must be below stop; got 0.5 and 0.5"):
        index(fraction={"start": 0.5, "stop": 0.5})


def test_the_share_of_unreadable_images_is_that_of_the_fraction(index, photos):
    bad = {f"a/bad {number}.png": f"no image {number}".encode() for number in range(10)}
    put(photos, bad)
    part = index(fraction={"stop": 0.5}, max_unreadable=0.99).artifact
    other = index(fraction={"start": 0.5}, max_unreadable=0.99).artifact
    assert part.quarantine().keys() | other.quarantine().keys() == bad.keys()
    assert part.num_quarantined + other.num_quarantined == 10 and part.num_quarantined not in (0, 10)


@pytest.mark.parametrize("labels", [[3, 1_000_000], [0, 2**62], [[0], [1, 10**9]]])
def test_ids_are_not_taken_for_class_numbers(index, tmp_path, labels):
    images = [{"bytes": png(number), "path": ""} for number in range(2)]
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"below 1,000,000; got \d+ at train.parquet#1. Is it an id\?"):
        index(place=tmp_path / "train.parquet", format="parquet")
