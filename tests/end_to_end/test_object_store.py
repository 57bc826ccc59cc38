"""The store in an object store: a machine is killed, another one with an empty disk goes on to the same bytes."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.read_cache import ReadCache
from storage.store import Store
from tests.end_to_end.command import ALONE, RECIPE, Result, WarmGraft, environment, keys_of_steps, only
from tests.object_store import ObjectServer, Request

STEPS = ("index_pretext", "index_cluster", "train_pretext", "extract_cluster", "cluster_features")


class Bucket:
    """A bucket, and machines that keep their artifacts in it."""

    def __init__(self, server: ObjectServer, folder: Path) -> None:
        self.server = server
        self.url = f"{server.new_bucket()}/graft"
        self.store = Store(self.url, cache=ReadCache(folder / "cache", limit_bytes=10**9))
        self.folder = self.store.folder
        self._homes = folder

    def environment(self, machine: str, **settings: object) -> dict[str, str]:
        return environment(self._homes / machine, store=self.url, **settings) | self.server.variables()

    def kill_at(self, warm: WarmGraft, key: str, ending: str, *, number: int, env: dict[str, str]) -> Result:
        """Run the steps and kill the machine when it asks for this write the so-many-th time; it is not done."""
        pid: list[int] = []
        times: list[Request] = []

        def kill(request: Request) -> int | None:
            if request.method == "PUT" and f"/{key}/" in request.path and request.path.endswith(ending):
                times.append(request)
                if len(times) == number:
                    os.kill(pid[0], signal.SIGKILL)
                    return 503
            return None

        with self.server.answering(kill):
            running = warm.start("run", RECIPE, ALONE, *only(STEPS), env=env)
            pid.append(running.pid)
            result = running.finish()
            assert result.code == -signal.SIGKILL
            return result

    def writes(self, key: str, ending: str) -> list[str]:
        """The objects of a key whose name ends so, once for each time that one was written."""
        return [path for path in self.server.asked("PUT", ending) if f"/{key}/" in path]


@pytest.fixture
def bucket(object_server: ObjectServer, tmp_path: Path) -> Bucket:
    return Bucket(object_server, tmp_path)


def test_what_a_killed_machine_committed_is_not_done_again_by_the_next(
    bucket: Bucket, warm: WarmGraft, smoke_home: Path
) -> None:
    keys = keys_of_steps(smoke_home)
    training, extraction = keys["train_pretext"], keys["extract_cluster"]
    env = bucket.environment("first", checkpoint_seconds=0)
    first = bucket.kill_at(warm, training, "checkpoint.pt", number=3, env=env)
    second = bucket.kill_at(warm, extraction, "ledger/2.json", number=1, env=bucket.environment("second"))
    # Of four steps the third was done twice: its checkpoint was not kept.
    assert (first.training_steps, second.training_steps) == (3, 2)
    shards = [path for path in bucket.writes(extraction, "/0") if "conv4/c/" in path]
    assert len(shards) == 3
    bucket.server.requests.clear()

    last = warm("run", RECIPE, ALONE, *only(STEPS), env=bucket.environment("third"))
    assert last.code == 0, last.stderr
    assert last.computed == ["extract_cluster", "cluster_features"]
    # The third was written and not committed.
    assert set(shards) & set(bucket.writes(extraction, "/0")) == {shards[2]}
    made, local = bucket.store, Store(smoke_home / "store")
    assert {step: made.marker(keys[step]).digest for step in STEPS} == {
        step: local.marker(keys[step]).digest for step in STEPS
    }
    assert made.begun() == []


def upload(store: Path, bucket: Bucket) -> None:
    files = [path for path in (store / "artifacts").rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: bucket.folder.write(path.relative_to(store).as_posix(), path.read_bytes()), files))


def test_a_store_that_was_copied_into_a_bucket_is_one(
    bucket: Bucket, warm: WarmGraft, smoke_home: Path, tmp_path: Path
) -> None:
    upload(smoke_home / "store", bucket)
    env = bucket.environment("home")

    again = warm("run", RECIPE, ALONE, env=env)
    assert (again.code, again.computed) == (0, []), again.stderr
    page = Path(warm("report", RECIPE, env=env).stdout.strip())
    assert page.is_relative_to(tmp_path / "home") and page.suffix == ".html" and "<html" in page.read_text()

    keys = keys_of_steps(smoke_home)
    (weights,) = [name for name in bucket.folder.files() if keys["train_student"] in name and "weights" in name]
    content = bucket.folder.read(weights)
    bucket.folder.write(weights, content[:-1] + bytes([content[-1] ^ 1]))
    found = warm("verify", RECIPE, env=env)
    assert found.code == 1 and f"{len(keys) - 1} of {len(keys)} artifacts are intact; 0 are not made" in found.stdout
    assert f"damaged train_student: {bucket.folder.at(weights)} of Encoder(" in found.stderr
    assert "--force train_student" in found.stderr


def test_trouble_with_the_store_is_one_line(bucket: Bucket, warm: WarmGraft) -> None:
    env = bucket.environment("home") | {"GRAFT_STORE": f"{bucket.url.rpartition('/')[0]}-of-nobody/graft"}
    result = warm("status", RECIPE, env=env)
    assert result.code == 1 and "Create it, or correct GRAFT_STORE" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
