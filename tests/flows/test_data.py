"""`graft data` shows what the pipeline will see of each dataset of a recipe."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.recipe import CONFIGS
from tests.tasks.hostile_pictures import encode, picture, put_corpus

THING = "<object><name>dog</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox></object>"


def put_tables(folder: Path) -> Path:
    """One picture twice in train, once under another label, and once more in test."""
    folder.mkdir()
    for name, numbers, labels in (("train", [1, 2, 3, 1], [0, 0, 1, 2]), ("test", [1, 4], [0, 1])):
        images = [{"bytes": encode(picture(number)), "path": ""} for number in numbers]
        pq.write_table(pa.table({"image": images, "label": labels}), folder / f"{name}.parquet")
    return folder


def put_voc(year: Path) -> Path:
    for name in ("JPEGImages", "Annotations"):
        (year / name).mkdir(parents=True)
    for number, (left, right) in enumerate([(2, 12), (12, 2), (-40, 10**30)]):
        (year / "JPEGImages" / f"{number}.jpg").write_bytes(encode(Image.new("L", (20, 10), 60 * number)))
        (year / "Annotations" / f"{number}.xml").write_text(f"<annotation>{THING.format(left, right)}</annotation>")
    return year


@pytest.fixture(autouse=True)
def _no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_WORKERS", "0")


@pytest.fixture
def graft(tmp_path: Path) -> Callable[..., str]:
    """Runs a command on a recipe with these datasets, tables by default."""

    def run(command: str, *, data: dict[str, Path], **roles: dict[str, Any]) -> str:
        recipe = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
        tables = {"name": "tables", "format": "parquet"}
        recipe |= {"pretext_data": tables, "cluster_data": tables, "student_data": tables} | roles
        recipe["evaluations"]["photographs"] |= {"train_data": tables, "test_data": tables}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        places = [f"--data={name}={place}" for name, place in data.items()]
        done = CliRunner().invoke(app, [command, str(tmp_path / "recipe.yaml"), *places], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    return run


def of(output: str, dataset: str) -> str:
    """The paragraph of one dataset."""
    (found,) = (part for part in output.split("\n\n") if part.startswith(f"{dataset}: "))
    return found


def sheet_of(paragraph: str) -> np.ndarray:
    path = re.search(r"contact sheet: (.*\.png)", paragraph)
    assert path is not None
    return np.asarray(Image.open(path[1]))


def test_each_dataset_is_shown_once_with_all_there_is_to_know(graft, tmp_path):
    rows, bad = put_corpus(tmp_path / "photos")
    places = {"photos": tmp_path / "photos", "tables": put_tables(tmp_path / "tables")}
    output = graft(
        "data",
        data=places | {"scenes": put_voc(tmp_path / "voc")},
        pretext_data={"name": "photos", "format": "image_folder", "max_unreadable": 0.9},
        student_data={"name": "scenes", "format": "voc"},
    )

    photos = of(output, "photos")
    assert photos.startswith("photos: image_folder; used as pretext\n")
    assert f"images: {len(rows)}, " in photos and f"unreadable: {len(bad)}, left out:" in photos
    assert "width: 1 to 20,000 pixels" in photos and "height: 1 to 20,000 pixels" in photos
    assert "classes: 3, " in photos and "        0  empty" in photos
    listed = re.findall(r"^    (things/bad/.*?): (.+)$", photos, re.MULTILINE)
    assert [name for name, _ in listed] == sorted(bad)

    tables = of(output, "tables")
    assert tables.startswith("tables: parquet; used as cluster, photographs_train, photographs_test\n")
    assert "2 rows repeat an earlier one; 1 images lie in several splits, 1 under several labels" in tables
    assert "classes: 3, from 3 images (0) to 1 images (2)" in tables

    scenes = of(output, "scenes")
    assert "classes: 20, from 3 images (dog) to 0 images (tvmonitor); an image may show several" in scenes
    for paragraph, count in ((photos, len(rows)), (tables, 6), (scenes, 3)):
        height, width, _ = sheet_of(paragraph).shape
        assert (height, width) == (116 * -(-count // 12), 12 * 102)
    reds = (sheet_of(scenes) == [255, 0, 0]).all(axis=2)
    assert [bool(reds[:96, 102 * column : 102 * column + 96].any()) for column in range(4)] == [True] * 3 + [False]


def test_what_was_indexed_is_not_indexed_again_and_the_pipeline_takes_it_up(graft, tmp_path):
    dataset = {"name": "tables", "format": "parquet", "split": "train", "fraction": {"stop": 0.99}}
    arguments = {"data": {"tables": put_tables(tmp_path / "tables")}, "pretext_data": dataset}
    first, second = graft("data", **arguments), graft("data", **arguments)
    assert "tables: parquet, split train, from 0 to 0.99 (seed 0); used as pretext" in first
    assert re.findall(r"index_pretext: (.*)", first) != ["reused"]
    assert re.findall(r"index_pretext: (.*)", second) == ["reused"]
    status = graft("status", **arguments)
    assert re.search(r"index_pretext +done", status) and re.search(r"train_pretext +missing", status)


def test_many_classes_are_shown_by_the_largest_and_the_smallest(graft, tmp_path):
    numbers = [number for number in range(30) for _ in range(30 - number)]
    images = [{"bytes": encode(picture(row, width=3, height=2)), "path": ""} for row in range(len(numbers))]
    pq.write_table(pa.table({"image": images, "label": numbers}), tmp_path / "train.parquet")
    output = of(graft("data", data={"tables": tmp_path / "train.parquet"}), "tables")
    assert "classes: 30, from 30 images (0) to 1 images (29)" in output
    assert re.findall(r"^ +\d+  (\d+)$", output, re.MULTILINE) == [str(n) for n in [*range(10), *range(20, 30)]]
    assert "...  10 more" in output


def test_too_much_that_is_unreadable_says_how_to_see_it_all(graft, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"x" if number else encode(picture(number)))
    places = {"photos": tmp_path / "photos", "tables": put_tables(tmp_path / "tables")}
    with pytest.raises(ValueError, match=r"3 of 4 images .*raise max_unreadable; graft data then lists them all"):
        graft("data", data=places, pretext_data={"name": "photos", "format": "image_folder"})
