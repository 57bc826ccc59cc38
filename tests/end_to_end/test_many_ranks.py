"""The command with GRAFT_RANKS=2: signals reach all ranks, none outlives it, and nothing is done or told twice."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from mlflow import MlflowClient

from storage.store import Store
from tests.end_to_end.command import RECIPE, PrefectApi, WarmGraft, environment, eventually, processes_of
from tests.end_to_end.test_interrupted import SETTINGS, STEPS, checkpoint_step, mlflow_runs

STEP = "train_pretext"


def ranks_of(home: Path) -> list[str]:
    return [line for line in processes_of(home) if "tasks.one_rank" in line]


def test_stopped_then_killed_then_done(home: Path, tmp_path: Path, warm: WarmGraft, prefect: PrefectApi) -> None:
    recipe = shutil.copy(RECIPE, tmp_path / "ranks.yaml")
    env = environment(home, prefect_api_url=prefect.url, checkpoint_seconds=1000, ranks=2)
    store = Store(home / "store")
    before = set(store.complete())
    # Left by the run that made this home, if by any.
    assert not list((home / "store").glob("work/*"))

    command = warm.start("run", recipe, "--only", STEP, *SETTINGS, env=env)
    eventually(lambda: list((home / "store").glob("work/*/state/progress.json")), what="training")
    command.send_signal(signal.SIGTERM)
    stopped = command.finish()
    assert stopped.code == 128 + signal.SIGTERM
    assert "Traceback" not in stopped.stderr
    assert ranks_of(home) == []
    # Only the signal wrote a checkpoint.
    (work,) = (home / "store" / "work").iterdir()
    kept = checkpoint_step(store.work_folder(work.name))
    assert 0 < kept < STEPS
    assert mlflow_runs(home)[STEP].info.status == "KILLED"

    command = warm.start("run", recipe, "--only", STEP, *SETTINGS, env=env)
    eventually(lambda: len(ranks_of(home)) >= 3, what="ranks")
    command.send_signal(signal.SIGKILL)
    command.finish()
    eventually(lambda: ranks_of(home) == [], what="the end of all ranks")
    assert set(store.complete()) == before

    done = warm("run", recipe, "--only", STEP, "--only", "extract_cluster", *SETTINGS, env=env)
    assert (done.code, done.stderr, done.computed) == (0, "", [STEP, "extract_cluster"])
    progress = prefect.progress("ranks", STEP)
    assert progress is not None and f"{STEPS} of {STEPS} steps" in progress["description"]
    runs = mlflow_runs(home)
    assert runs[STEP].info.status == runs["extract_cluster"].info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    losses = client.get_metric_history(runs[STEP].info.run_id, "loss/main")
    assert [loss.step for loss in losses] == list(range(1, STEPS + 1))
