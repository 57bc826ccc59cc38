"""The Prefect server that a command starts: shared, stopped by the last to leave, and never left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end.command import (
    RECIPE,
    PrefectApi,
    WarmGraft,
    answers,
    environment,
    eventually,
    processes_of,
)

TELEMETRY_OFF = {
    "DO_NOT_TRACK=true",
    "MLFLOW_DISABLE_TELEMETRY=true",
    "PREFECT_SERVER_ANALYTICS_ENABLED=false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=false",
}
SHORT = ("--only", "probe_photographs_student", "--force", "probe_photographs_student")


class Server(NamedTuple):
    """What a command wrote down of the server it started."""

    pid: int
    port: int

    @property
    def api(self) -> PrefectApi:
        return PrefectApi(f"http://127.0.0.1:{self.port}/api")


def server_of(home: Path, *, other_than: Server | None = None) -> Server | None:
    """The server that was started for this home and is not stopped, whether it answers yet or not."""
    try:
        server = Server(**json.loads((home / "prefect" / "server.json").read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return None if server == other_than else server


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's server."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def clean_home(home: Path) -> Iterator[Path]:
    """A home whose processes, if a test fails, do not outlive it."""
    yield home
    server = server_of(home)
    if server is not None:
        subprocess.run(["kill", "-9", "--", f"-{server.pid}"], check=False)


def test_the_server_is_shared_and_the_last_to_leave_stops_it(
    clean_home: Path, tmp_path: Path, warm: WarmGraft, bystander: subprocess.Popen[bytes]
) -> None:
    home, env = clean_home, environment(clean_home)
    # Left by a server that died; its number is another process's by now, which must live on.
    (home / "prefect").mkdir()
    stale = Server(bystander.pid, port=9)
    (home / "prefect" / "server.json").write_text(json.dumps(stale._asdict()))

    long_recipe = shutil.copy(RECIPE, tmp_path / "long.yaml")
    long = warm.start("run", long_recipe, "--set", "train_pretext.epochs=1000000", "--only", "train_pretext", env=env)
    server = eventually(lambda: server_of(home, other_than=stale), what="the start of a server")
    assert bystander.poll() is None
    eventually(lambda: answers(server.api.url), what="an answer of the server")
    eventually(lambda: server.api.progress("long", "train_pretext"), what="training")
    variables = Path(f"/proc/{server.pid}/environ").read_bytes().decode().split("\0")
    assert set(variables) >= TELEMETRY_OFF

    short = warm("run", RECIPE, *SHORT, env=env)
    assert (short.code, short.stderr, short.computed) == (0, "", ["probe_photographs_student"])
    assert server.api.url.removesuffix("/api") in short.stdout
    assert server_of(home) == server
    assert answers(server.api.url), "the first to leave stopped the server"

    long.send_signal(signal.SIGKILL)
    assert long.finish().code == -signal.SIGKILL
    assert answers(server.api.url)

    next_one = warm("run", RECIPE, *SHORT, env=env)
    assert (next_one.code, next_one.stderr) == (0, "")
    assert server.api.url.removesuffix("/api") in next_one.stdout
    assert server_of(home) is None
    assert not answers(server.api.url)
    assert processes_of(home) == []


def test_a_command_stopped_while_the_server_starts_leaves_none(clean_home: Path, warm: WarmGraft) -> None:
    command = warm.start("run", RECIPE, *SHORT, env=environment(clean_home))
    eventually(lambda: server_of(clean_home), what="the start of a server")
    command.send_signal(signal.SIGINT)
    assert command.finish().code == 128 + signal.SIGINT
    assert server_of(clean_home) is None
    assert processes_of(clean_home) == []
