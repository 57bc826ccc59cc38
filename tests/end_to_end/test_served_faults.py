"""What goes wrong while runs are served: processes killed, servers away, runs cancelled. Nobody helps."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flows.local_server import free_port
from tests.end_to_end.command import RECIPE, ROAD, environment, eventually, graft, keys_of_steps
from tests.end_to_end.served import Served, pid_of, request

# Not the recipe's own, so that there is time to kill it.
STEPS = 400
OUTAGE_SECONDS = 60


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    serving = Served(folder / "home", prefect_port=free_port(), mlflow_port=free_port(), checkpoint_seconds=1)
    yield serving
    serving.stop()
    serving.kill_what_is_left()


def test_a_killed_run_goes_on_by_itself(served: Served) -> None:
    changes = ["seed=3", f"train_pretext.epochs={STEPS}"]
    first = served.start("knowledge-transfer", "pipeline", request(only=list(ROAD), changes=changes))
    eventually(lambda: served.percent(first, "train_pretext") > 10, what="some training")
    served.kill(r"-m prefect\.engine")
    assert served.ended(first)["state_type"] == "CRASHED"
    again = eventually(lambda: served.taken_up(first), what="another attempt")
    assert served.ended(again["id"])["state_type"] == "COMPLETED"
    # One MLflow run for both attempts.
    _require_whole(served)
    pipelines = sorted(one["status"] for one in served.mlflow_runs() if one["name"] == "smoke")
    assert "KILLED" in pipelines and "RUNNING" not in pipelines


def test_a_run_outlives_its_worker_or_is_taken_up(served: Served) -> None:
    slow = [f"extract_cluster.{name}={value}" for name, value in {"size": 224, "resize": 224, "shard_rows": 4}.items()]
    run = served.start("knowledge-transfer", "pipeline", request(only=list(ROAD[:5]), changes=["seed=6", *slow]))
    eventually(lambda: served.percent(run, "extract_cluster") > 10, what="some shards")
    kept = {path for work in _works(served) for path in work.glob("state/ledger/*")}
    killed = time.time()
    served.kill(r"-m flows\.worker", r"prefect worker start")
    if served.ended(run)["state_type"] == "CRASHED":
        run = eventually(lambda: served.taken_up(run), what="another attempt")["id"]
    assert served.ended(run)["state_type"] == "COMPLETED"
    features = served.home / "store" / "artifacts" / keys_of_steps(served.home)["extract_cluster"]
    shards = [path for path in features.glob("*/conv4/c/*/*") if path.is_file()]
    assert sum(path.stat().st_mtime < killed for path in shards) >= len(kept) > 0


def test_a_run_whose_machine_is_gone_is_taken_up(served: Served) -> None:
    changes = ["seed=5", f"train_pretext.epochs={STEPS}"]
    first = served.start("knowledge-transfer", "pipeline", request(only=list(ROAD[:4]), changes=changes))
    eventually(lambda: served.percent(first, "train_pretext") > 10, what="some training")
    served.kill(r"-m flows\.worker", r"prefect worker start", r"-m prefect\.engine")
    # Nobody is left who could say so: its heartbeat stops.
    assert served.ended(first)["state_type"] == "CRASHED"
    again = eventually(lambda: served.taken_up(first), what="another attempt")
    assert served.ended(again["id"])["state_type"] == "COMPLETED"
    _require_whole(served)


def test_a_minute_without_servers_is_survived(served: Served) -> None:
    changes = ["seed=7", f"train_pretext.epochs={STEPS}"]
    run = served.start("knowledge-transfer", "pipeline", request(only=list(ROAD), changes=changes))
    eventually(lambda: served.percent(run, "train_pretext") > 5, what="some training")
    served.freeze()
    served.kill(r"mlflow server", r"prefect server")
    time.sleep(OUTAGE_SECONDS)
    served.thaw()
    assert served.ended(run)["state_type"] == "COMPLETED"
    _require_whole(served)


def test_a_cancelled_run_keeps_a_checkpoint_and_goes_on_when_it_is_started_again(served: Served) -> None:
    changes = ["seed=8", f"train_pretext.epochs={STEPS}"]
    asked = request(only=list(ROAD[:4]), changes=changes)
    run = served.start("knowledge-transfer", "pipeline", asked)
    eventually(lambda: served.percent(run, "train_pretext") > 10, what="some training")
    served.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert served.ended(run)["state_type"] == "CANCELLED"
    assert [work for work in _works(served) if any(work.glob("state/*checkpoint*"))]
    again = served.ended(served.start("knowledge-transfer", "pipeline", asked))
    assert again["state_type"] == "COMPLETED"
    _require_whole(served)


def test_a_run_that_crashed_three_times_or_was_cancelled_stays_as_it_is(served: Served) -> None:
    third = served.start("knowledge-transfer", "pipeline", request(), tags=["again:3"], state={"type": "CRASHED"})
    cancelled = served.start(
        "knowledge-transfer", "pipeline", request(changes=["seed=1"]), state={"type": "CANCELLING"}
    )
    served.post(f"flow_runs/{cancelled}/set_state", {"state": {"type": "CRASHED"}, "force": True})
    known = served.tagged("again:2")
    for run in (third, cancelled):
        assert served.ended(served.start("recover", "recover", {"flow_run_id": run}))["state_type"] == "COMPLETED"
    assert (served.tagged("again:2"), served.tagged("again:4")) == (known, [])


def test_a_command_beside_it_uses_its_server(served: Served) -> None:
    before = len(served.prefect.flow_runs("smoke"))
    result = graft("run", RECIPE, "--only", "index_pretext", "--force", "index_pretext", env=environment(served.home))
    assert result.code == 0 and "starting the local Prefect server" not in result.stdout, result.stdout
    assert "WARNING" not in result.stderr, result.stderr
    assert len(served.prefect.flow_runs("smoke")) == before + 1


def test_what_dies_is_started_again(served: Served) -> None:
    for pattern in (r"prefect worker start", r"-m flows\.worker", r"mlflow server", r"prefect server"):
        before = eventually(lambda p=pattern: pid_of(served.home, p), what=pattern)
        os.kill(before, signal.SIGKILL)
        eventually(lambda p=pattern, b=before: (pid_of(served.home, p) or b) != b, what=f"another {pattern}")
    run = served.ended(served.start("verify", "verify", {"recipe": "smoke"}))
    assert run["state_type"] == "COMPLETED"


def _works(served: Served) -> list[Any]:
    return list((served.home / "store" / "work").iterdir())


def _require_whole(served: Served) -> None:
    """MLflow holds one finished run of the last teacher's training, each step of it once, up to the last."""
    teacher = served.newest("train_pretext")
    steps = served.metric_steps(teacher, "lr")
    assert teacher["status"] == "FINISHED" and steps == sorted(set(steps)) and steps[-1] >= STEPS
