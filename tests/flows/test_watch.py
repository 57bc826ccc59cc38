"""New data is told of once, when it changes no more; what cannot be read is said and starts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from flows.recipe import CONFIGS
from flows.watch import Change, DataUnreadable, look_at_data
from storage.store import Store
from tasks.runtime import Runtime


class Watched:
    """A recipe whose images lie in a folder, and what was told of them."""

    def __init__(self, folder: Path) -> None:
        self.photos = folder / "photos"
        self.add("0")
        recipe = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
        data = {"name": "photos", "format": "image_folder"}
        recipe |= {"pretext_data": data, "student_data": data}
        self.recipe = str(folder / "watched.yaml")
        Path(self.recipe).write_text(yaml.safe_dump(recipe))
        self.runtime = Runtime(home=folder / "home", device="cpu", workers=0, data={"photos": self.photos})
        self.told: list[Change] = []

    def add(self, name: str, colour: int = 9) -> None:
        self.photos.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (colour, 8, 7)).save(self.photos / f"{name}.png")

    def look(self) -> str:
        return look_at_data(self.recipe, self.told.append, runtime=self.runtime).state


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_new_data_is_told_of_once_when_it_is_the_same_in_two_looks(watched: Watched) -> None:
    assert [watched.look() for _ in range(3)] == ["first", "same", "same"]
    watched.add("1")
    assert watched.look() == "moving"
    # Still being copied.
    watched.add("2")
    assert watched.look() == "moving" and watched.told == []
    assert [watched.look() for _ in range(3)] == ["changed", "same", "same"]
    (change,) = watched.told
    # The recipe's photographs of the package did not change.
    assert change.steps == ["index_cluster", "index_pretext", "index_student"]


def test_data_that_comes_back_to_what_it_was_is_nothing_new(watched: Watched) -> None:
    watched.look()
    watched.add("1")
    assert watched.look() == "moving"
    (watched.photos / "1.png").unlink()
    assert [watched.look(), watched.look()] == ["same", "same"] and watched.told == []


def test_each_change_is_another_and_one_that_is_told_again_is_the_same(watched: Watched) -> None:
    def killed(change: Change) -> None:
        watched.told.append(change)
        raise KeyboardInterrupt

    watched.look()
    watched.add("1")
    watched.look()
    with pytest.raises(KeyboardInterrupt):
        look_at_data(watched.recipe, killed, runtime=watched.runtime)
    assert watched.look() == "changed"
    first, again = watched.told
    assert first == again
    (watched.photos / "1.png").unlink()
    assert [watched.look(), watched.look()] == ["moving", "changed"]
    watched.add("1")
    assert [watched.look(), watched.look()] == ["moving", "changed"]
    # The same bytes for the second time are news again.
    assert len({change.id for change in watched.told}) == 3


def test_what_cannot_be_read_is_said_and_forgets_nothing(watched: Watched) -> None:
    watched.look()
    watched.add("1")
    watched.look()
    away = watched.photos.rename(watched.photos.with_name("away"))
    with pytest.raises(DataUnreadable, match=r"index_pretext: the place of dataset 'photos' must be an existing path"):
        watched.look()
    assert watched.told == []
    away.rename(watched.photos)
    assert watched.look() == "changed"


def test_two_never_look_at_once(watched: Watched) -> None:
    watched.look()
    (name,) = (path.stem for path in (watched.runtime.store_root / "watch").iterdir())
    with Store(watched.runtime.store_root).lease(f"watch-{name}"), pytest.raises(TimeoutError):
        watched.look()
