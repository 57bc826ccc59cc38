"""What stands in for the images that are not ours: programs of the system's packages, and moto as the object store.

They get the environment and, where the image has none of its own, the command of the compose file. moto knows no keys:
that the object store refuses a stranger is not tested here.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker.composition import services

if TYPE_CHECKING:
    from tests.docker.processes import Stack

# Debian keeps the programs of the Postgres server off the path.
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
PATH = os.pathsep.join(map(str, [Path(sys.executable).parent, os.environ["PATH"], *POSTGRES]))


def program(name: str, package: str) -> str:
    """A program of a system package. Where it is missing the test is skipped, which CI takes for a failure."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"this test needs {name}: apt-get install {package}")
    return found


def user(service: str) -> str | None:
    """Who runs a service; Postgres refuses to be run by root."""
    return "postgres" if service == "postgres" and os.geteuid() == 0 else None


def postgres(stack: Stack) -> list[str]:
    """Make the databases as the entry point of the image does; gives the command of the server."""
    environment = stack.environment("postgres")
    home, data = Path(environment["HOME"]), Path(environment["HOME"]) / "data"
    role, password = environment["POSTGRES_USER"], home / "password"
    password.write_text(environment["POSTGRES_PASSWORD"])
    if user("postgres"):
        for path in (home, password):
            shutil.chown(path, "postgres", "postgres")

    def do(*command: str | Path) -> None:
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, user=user("postgres"))
        assert done.returncode == 0, done.stdout + done.stderr

    do(
        *(program("initdb", "postgresql"), "--pgdata", data, "--username", role, f"--pwfile={password}"),
        *("--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"),
    )
    # fsync is for a disk that outlives the test.
    options = f"-p {stack.ports['postgres']} -k {home} -c fsync=off"
    control = (program("pg_ctl", "postgresql"), "--pgdata", data, "--wait", "--log", home / "preparation.log")
    do(*control, "--options", f"{options} -c listen_addresses=", "start")
    ask = (program("psql", "postgresql"), "--host", home, "--port", str(stack.ports["postgres"]), "--username", role)
    do(*ask, "--dbname", "postgres", "--command", f"CREATE DATABASE {environment['POSTGRES_DB']}")
    for script in scripts():
        do(*ask, "--dbname", environment["POSTGRES_DB"], "--file", stack.folder / "docker" / script)
    do(*control, "stop")
    return [program("postgres", "postgresql"), "-D", str(data), "-c", "listen_addresses=127.0.0.1", *options.split()]


def scripts() -> list[str]:
    """The files that the image runs when its volume is empty."""
    volumes = [volume.split(":") for volume in services()["postgres"]["volumes"]]
    return [parts[0].removeprefix("./") for parts in volumes if parts[1].startswith("/docker-entrypoint-initdb.d/")]


def redis(stack: Stack) -> list[str]:
    """The command of the file; on the loopback address, where the image has a network of its own."""
    command = [stack.local(word) for word in services()["redis"]["command"]]
    return [program("redis-server", "redis-server"), *command[1:], "--bind", "127.0.0.1"]


def object_store(stack: Stack) -> list[str]:
    return [program("moto_server", "moto"), "--host", "127.0.0.1", "--port", str(stack.ports["s3"])]


def listens(stack: Stack) -> bool:
    """moto has no health check of its own."""
    try:
        socket.create_connection(("127.0.0.1", stack.ports["s3"]), timeout=1).close()
    except OSError:
        return False
    return True


COMMANDS: dict[str, Callable[[Stack], list[str]]] = {"postgres": postgres, "redis": redis, "s3": object_store}
READY: dict[str, Callable[[Stack], bool]] = {"s3": listens}
