"""Small real steps to run on several ranks, and a way to kill one of them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from storage.artifact import Artifact
from storage.encoders import Encoder
from storage.store import Store
from tasks.cluster_features import ClusterFeaturesConfig
from tasks.extract_features import ExtractFeaturesConfig
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, StageResult, run_stage
from tasks.train_pretext import TrainPretextConfig

ROWS = 50
EXTRACT = ExtractFeaturesConfig(layers=("conv2", "last"), size=32, resize=32, shard_rows=4)
CLUSTER = ClusterFeaturesConfig(num_clusters=4, iterations=3, layer="conv5")
TRAIN = TrainPretextConfig(
    architecture={"name": "alexnet_bn", "stem": "small", "width": 0.0625},
    options={"crop_size": 32, "head": "fc", "head_grid": 2},
    epochs=4,
    batch_size=10,
)
STEPS = 20


class Bench:
    """A home with images, and steps on them."""

    def __init__(self, home: Path, images: Path) -> None:
        self.home = home
        self.images = images

    def run(self, stage: Any, config: Any, *, reporter: Any = None, **inputs: Any) -> Any:
        settings = {name: inputs.pop(name) for name in list(inputs) if name in Runtime.model_fields}
        runtime = Runtime(
            **{"home": self.home, "device": "cpu", "workers": 0, "batch_rows": 4, "data": {"toys": self.images}}
            | settings
        )
        context = Context(runtime, self.store, NoRecorder(), reporter or Silent())
        result: StageResult[Any] = run_stage(stage, config, inputs=inputs, context=context)
        assert not result.reused
        return result.artifact

    @property
    def store(self) -> Store:
        return Store(self.home / "store")

    def again(self, artifact: Artifact) -> None:
        """Forget an artifact, so that it is made anew."""
        shutil.rmtree(self.store.artifact_folder(artifact.key).path)

    def work(self) -> Path:
        """The work folder of the one thing in the making."""
        (folder,) = (self.home / "store" / "work").iterdir()
        return folder


def draw_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for row in range(ROWS):
        place = folder / f"class{row % 2}" / f"{row}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(place)


def weights(encoder: Encoder) -> np.ndarray:
    return np.concatenate([value.double().flatten().numpy() for value in encoder.backbone_weights().values()])


def rank_process(is_it: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    """The first process below this one that is it."""
    for process in psutil.Process().children(recursive=True):
        try:
            if is_it(process):
                return process
        except psutil.Error:
            continue
    return None


def of_torchrun(process: psutil.Process, *, rank: str = "1") -> bool:
    return "tasks.one_rank" in process.cmdline() and process.environ().get("RANK") == rank


def of_ray(process: psutil.Process) -> bool:
    return any("RayRank" in word for word in process.cmdline())


@contextmanager
def killed(is_it: Callable[[psutil.Process], bool], *, when: Callable[[], bool]) -> Iterator[None]:
    """A block in which the process of a rank is killed as soon as something holds."""
    over = threading.Event()

    def kill() -> None:
        while not over.is_set():
            process = rank_process(is_it)
            while process is not None and not over.is_set():
                if when():
                    process.kill()
                    return
                time.sleep(0.002)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


LOST = r"of 2, rank [01] ended without a word \(killed\? out of memory\? see .*\). What was committed is kept"
