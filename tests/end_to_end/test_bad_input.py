"""What a user gets wrong, or a disk, ends with exit code 1 and one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows.pipeline import RunRequest, open_pipeline
from storage.artifact import Artifact, content_digest
from storage.checkpoints import save_checkpoint
from storage.folder import Folder
from storage.store import MARKER, Store
from tasks.assign_labels import SpaceMismatch, assign_labels
from tasks.extract_features import extract_features
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, run_stage
from tests.end_to_end.command import ALONE, RECIPE, ROAD, Result, WarmGraft, environment, keys_of_steps, only


def error_of(result: Result) -> str:
    """The one line that a command ended with."""
    assert result.code == 1
    assert result.stderr.startswith("error ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("error ").strip()


def artifact_of(home: Path, step: str) -> Artifact:
    """What a step of the smoke recipe has made."""
    request = RunRequest(recipe=str(RECIPE))
    found = open_pipeline(request, runtime=Runtime(home=home), record=False).plan().steps[step].artifact
    assert found is not None
    return found


def photographs(folder: Path) -> Path:
    """A folder of images without classes."""
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (
            "cluster_features.num_cluster=6",
            "cluster_features.num_cluster is not a key that exists; keys there are num_clusters, iterations,",
        ),
        ("cluster_features.num_clusters=many", "cluster_features.num_clusters: Input should be a valid integer"),
        ("cluster_features.num_clusters=80", "num_clusters must be at most the number of rows, 79, got 80; lower it"),
        ("cluster_data={name: mine, format: image_folder}", "Say where it lies: --data mine=PATH"),
        ("no change", "--set must look like STEP.key=value, got 'no change'"),
    ],
)
def test_a_setting_that_cannot_be(home: Path, warm: WarmGraft, change: str, remedy: str) -> None:
    assert remedy in error_of(warm("run", RECIPE, ALONE, "--set", change, env=environment(home)))


def test_a_recipe_that_does_not_exist(tmp_path: Path, warm: WarmGraft) -> None:
    error = error_of(warm("run", "quickstrat", env=environment(tmp_path / "home")))
    assert error.startswith("a recipe must be one of ") and "quickstart" in error and "'quickstrat'" in error
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_a_dataset_that_is_not_there(home: Path, tmp_path: Path, warm: WarmGraft, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    mine = ("--set", "cluster_data={name: mine, format: image_folder}", "--data", f"mine={tmp_path / place}")
    error = error_of(warm("run", RECIPE, ALONE, *mine, env=environment(home)))
    assert "dataset 'mine'" in error and str(tmp_path / place) in error and "--data mine=PATH" in error


def test_a_place_of_no_dataset(smoke_home: Path, warm: WarmGraft) -> None:
    error = error_of(warm("run", RECIPE, "--data", "[mine]", env=environment(smoke_home)))
    assert error == "--data must look like NAME=PATH, got '[mine]'"


def test_an_evaluation_without_labels(home: Path, tmp_path: Path, warm: WarmGraft) -> None:
    data = "{name: mine, format: image_folder, options: {labels: false}}"
    sides = (f"evaluations.photographs.{side}_data={data}" for side in ("train", "test"))
    changes = [word for side in sides for word in ("--set", side)]
    place = f"mine={photographs(tmp_path / 'mine')}"
    error = error_of(warm("run", RECIPE, ALONE, *changes, "--data", place, env=environment(home)))
    assert "every row of dataset 'mine'" in error and "0 of 4" in error and "Choose a labelled dataset" in error


def test_features_that_are_not_finite(home: Path, warm: WarmGraft) -> None:
    from safetensors.torch import load, save

    encoder = artifact_of(home, "train_pretext")
    weights = load(encoder.folder.read("weights.safetensors"))
    weights["backbone.stages.conv4.0.weight"][0] = torch.nan
    encoder.folder.write("weights.safetensors", save(weights))
    files = [encoder.folder.record(file.path) for file in encoder.marker.files]
    marker = encoder.marker.model_copy(update={"files": files, "digest": content_digest(files)})
    Folder(encoder.folder.path.parent).write(MARKER, marker.model_dump_json().encode())
    error = error_of(warm("run", RECIPE, ALONE, env=environment(home)))
    assert "features must be finite; layer conv4 of row 0" in error
    assert "set dtype: float32" in error or "train the encoder again" in error


def test_features_and_centroids_of_two_encoders(home: Path) -> None:
    context = Context(Runtime(home=home, workers=0), Store(home / "store"), NoRecorder(), Silent())
    config = open_pipeline(RunRequest(recipe=str(RECIPE)), runtime=context.runtime, record=False).recipe
    of_student = run_stage(
        extract_features,
        config.extract_cluster,
        inputs={"encoder": artifact_of(home, "train_direct"), "images": artifact_of(home, "index_student")},
        context=context,
    ).artifact
    inputs = {"features": of_student, "centroids": artifact_of(home, "cluster_features")}
    with pytest.raises(SpaceMismatch, match="must lie in the space of the centroids .* extract them with the encoder"):
        run_stage(assign_labels, config.assign_labels, inputs=inputs, context=context)


@pytest.mark.parametrize(
    ("step", "dependent"), [("train_pretext", "extract_cluster"), ("extract_cluster", "cluster_features")]
)
def test_a_damaged_artifact(home: Path, warm: WarmGraft, step: str, dependent: str) -> None:
    artifact = artifact_of(home, step)
    largest = max(artifact.marker.files, key=lambda file: file.size)
    place = artifact.folder.path / largest.path
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)

    verified = warm("verify", RECIPE, env=environment(home))
    assert verified.code == 1
    assert verified.stderr.startswith(f"damaged {step}: {place} ")
    assert f"graft run {RECIPE} --force {step}" in verified.stderr
    assert verified.stderr.count("\n") == 1
    assert verified.stdout == "29 of 30 artifacts are intact; 0 are not made yet\n"

    refused = error_of(warm("run", RECIPE, ALONE, "--force", dependent, env=environment(home)))
    assert str(place) in refused and "recompute" in refused and "--force" in refused

    mended = warm("run", RECIPE, ALONE, "--force", step, env=environment(home))
    assert (mended.code, mended.computed) == (0, [step])
    assert warm("verify", RECIPE, env=environment(home)).code == 0


def test_an_artifact_that_was_cut_short(home: Path, warm: WarmGraft) -> None:
    artifact = artifact_of(home, "train_direct")
    place = artifact.folder.path / "weights.safetensors"
    place.write_bytes(place.read_bytes()[:-1])
    # That it was done once is known from its marker alone.
    (home / "recipes" / "smoke.json").unlink()
    verified = warm("verify", RECIPE, env=environment(home))
    assert verified.code == 1
    assert "damaged train_direct: its artifact is gone or damaged" in verified.stderr
    assert str(place.parent.parent.name) in verified.stderr.replace("\n", "")
    mended = warm("run", RECIPE, ALONE, env=environment(home))
    assert (mended.code, mended.computed) == (0, ["train_direct"])


def test_a_checkpoint_of_another_network(home: Path, warm: WarmGraft) -> None:
    from models.pretext.base import load_method
    from models.training.loop import TrainState
    from models.training.optimizers import build_optimizers
    from tasks.training import build_method

    config = open_pipeline(RunRequest(recipe=str(RECIPE)), runtime=Runtime(home=home), record=False).recipe.train_direct
    foreign = build_method(load_method(config.method), config, num_rows=79)
    state = TrainState(foreign, build_optimizers(foreign, config.optimizer)).state_dict()
    key = artifact_of(home, "train_pretext").key
    shutil.rmtree(home / "store" / "artifacts" / key)
    work = Store(home / "store").work_folder(key)
    save_checkpoint(work / "state", {"state": state, "outbox": 0})

    error = error_of(warm("run", RECIPE, ALONE, env=environment(home)))
    assert "must be of this very network and method, and is not" in error
    assert str(work.path / "state") in error and "Remove that folder" in error
    shutil.rmtree(work.path / "state")
    assert warm("run", RECIPE, ALONE, env=environment(home)).computed == ["train_pretext"]


class SmallDisk:
    """A file system of 1 MB that only the commands run here see."""

    def __init__(self, place: Path, folder: Path) -> None:
        unprivileged = () if os.geteuid() == 0 else ("--map-root-user",)
        self._place = place
        self.run = WarmGraft(folder, prefix=("unshare", "--mount", *unprivileged))
        self._enter = ("--user", "--preserve-credentials") if unprivileged else ()
        place.mkdir()
        assert self.run("--help", env=environment(folder)).code == 0
        self.mount("-t", "tmpfs", "-o", "size=1m", "graft-test")

    def mount(self, *options: str) -> None:
        enter = ["nsenter", "--target", str(self.run.pid), "--mount", *self._enter]
        subprocess.run([*enter, "mount", *options, str(self._place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", tmp_path)
    yield disk
    disk.run.close()


def test_a_full_disk_and_a_read_only_one(small_disk: SmallDisk, smoke_home: Path, tmp_path: Path) -> None:
    env = environment(tmp_path / "home", store=tmp_path / "disk" / "store")
    command: tuple[str | Path, ...] = ("run", RECIPE, ALONE, *only(ROAD))

    full = small_disk.run(*command, env=env)
    error = error_of(full)
    assert "must be writable, but the system says: No space left on device" in error
    assert "Free space there, or point GRAFT_HOME or GRAFT_STORE to another disk" in error
    assert full.computed

    small_disk.mount("-o", "remount,ro")
    read_only = small_disk.run(*command, env=env)
    assert "must be writable, but the system says: Read-only file system" in error_of(read_only)
    assert read_only.computed == []
    ill = small_disk.run("doctor", env=env)
    assert ill.code == 1
    said = " ".join(ill.stdout.split())
    assert "store broken" in said and "Read-only file system" in said and "0.0 GiB free" in said

    small_disk.mount("-o", "remount,rw,size=64m")
    roomy = small_disk.run(*command, env=env)
    assert (roomy.code, roomy.stderr) == (0, "")
    assert set(full.computed) <= set(roomy.reused)
    assert small_disk.run("verify", RECIPE, env=env).code == 0
    keys = keys_of_steps(smoke_home)
    assert keys_of_steps(tmp_path / "home") == {step: keys[step] for step in ROAD}
