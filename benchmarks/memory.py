"""Does memory grow with the number of rows? Peak of the whole process tree at 1 x and 20 x rows.

    python benchmarks/memory.py [--rows 112000] [--work FOLDER]

Runs index, extraction, clustering and labelling on generated pictures, with the features as wide as they are in
practice (conv1 of CaffeNet pooled to 10 x 10 x 96 = 9,600 float32 values a row: 4.3 GB at the large end), once for each
size in a process of its own. Shards are of 1,024 rows, so that the small end too writes several of them.
The peak is of the proportional set size (PSS: shared pages count once) summed over the process and its workers, sampled
20 times a second, and also kept stage by stage. Writes a dated JSON beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydantic import BaseModel

    from storage.artifact import Artifact
    from tasks.stage import Stage

TIMES = 20
LIMIT = 1.10
SHARD_ROWS = 1024


def make_pictures(path: Path, *, rows: int) -> None:
    """A Parquet file of small random pictures, written in parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    chance = np.random.default_rng(0)
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 2000):
            images = []
            for row in range(start, min(start + 2000, rows)):
                coarse = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(coarse).resize((32, 32)).save(buffer, "PNG")
                images.append({"bytes": buffer.getvalue(), "path": f"{row}.png"})
            writer.write_table(pa.table({"image": images, "label": [0] * len(images)}, schema=schema))


def run_stages(place: Path, home: Path) -> None:
    """The stages whose memory must not grow, on one dataset; says on stdout which one begins."""
    from models.backbones import Architecture, Pooling
    from storage.store import Store
    from tasks.assign_labels import AssignLabelsConfig, assign_labels
    from tasks.cluster_features import ClusterFeaturesConfig, cluster_features
    from tasks.extract_features import ExtractFeaturesConfig, extract_features
    from tasks.index_dataset import IndexDatasetConfig, index_dataset
    from tasks.recording import NoRecorder
    from tasks.reporting import Silent
    from tasks.runtime import Runtime
    from tasks.stage import Context, run_stage
    from tasks.train_pretext import TrainPretextConfig, train_pretext

    runtime = Runtime.load(data={"pictures": place}, home=home, device="cpu")
    context = Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())

    def run(stage: Stage[Any, Any], config: BaseModel, **inputs: Artifact) -> Any:
        print(stage.name, flush=True)
        return run_stage(stage, config, inputs=inputs, context=context).artifact

    images = run(index_dataset, IndexDatasetConfig(name="pictures", format="parquet", shard_rows=SHARD_ROWS))
    network = Architecture(name="caffenet", stem="small")
    encoder = run(train_pretext, TrainPretextConfig(architecture=network, epochs=0), images=images)
    features = run(
        extract_features,
        ExtractFeaturesConfig(
            layers=("conv1",), pooling=Pooling(grid=10), size=32, resize=32, dtype="float32", shard_rows=SHARD_ROWS
        ),
        encoder=encoder,
        images=images,
    )
    centroids = run(
        cluster_features, ClusterFeaturesConfig(num_clusters=100, iterations=2, start_rows=1000), features=features
    )
    run(assign_labels, AssignLabelsConfig(), features=features, centroids=centroids)


def tree_pss(root: int) -> int:
    """Bytes of the process and all below it; pages that are shared count once."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(entry.name))
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        todo += parents.get(pid, [])
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def measure(place: Path, home: Path) -> dict[str, Any]:
    """Peak, peak of each stage, and seconds of one size."""
    command = [sys.executable, __file__, "--stages", str(place), str(home)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stage, peaks = "start", {"start": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            name, size = stage, tree_pss(process.pid) / 2**20
            peaks[name] = max(peaks.get(name, 0), size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for line in process.stdout:
        stage = line.strip()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"the stages failed with exit code {code}")
    return {"peak_mib": max(peaks.values()), "stages_mib": peaks, "seconds": time.monotonic() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=112_000, help="rows of the large end")
    parser.add_argument("--work", type=Path, help="folder for what is made; a temporary one by default")
    parser.add_argument("--stages", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stages:
        run_stages(*arguments.stages)
        return
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        for rows in (arguments.rows // TIMES, arguments.rows):
            place = Path(folder) / f"train-{rows}.parquet"
            make_pictures(place, rows=rows)
            measured = measure(place, Path(folder) / f"home-{rows}")
            result = {"rows": rows, "feature_gb": rows * 9600 * 4 / 1e9, **measured}
            print(json.dumps(result))
            results.append(result)
    growth = results[1]["peak_mib"] / results[0]["peak_mib"]
    today = datetime.date.today().isoformat()
    report = {"date": today, "machine": f"{os.cpu_count()} x {platform.machine()}", "growth": growth, "sizes": results}
    Path(__file__).with_name(f"memory-{today}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{TIMES} x the rows raise the peak by {100 * (growth - 1):+.1f} %")
    if growth > LIMIT:
        raise SystemExit(f"it must stay below {100 * (LIMIT - 1):.0f} %")


if __name__ == "__main__":
    main()
