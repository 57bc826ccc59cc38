"""The Dockerfile: without complaint of hadolint, and building from what there is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docker.composition import FOLDER, ROOT, services

DOCKERFILE = FOLDER / "Dockerfile"
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_base_is_pinned() -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("target", ["servers", "graft"])
def test_an_image_that_runs_is_no_root(target: str) -> None:
    stage = DOCKERFILE.read_text().split(f" AS {target}\n")[1].split("\nFROM ")[0]
    assert re.findall(r"^USER (.+)$", stage, re.MULTILINE) == ["10001"]


def test_compose_builds_stages_that_there_are() -> None:
    builds = [service["build"] for service in services().values() if "build" in service]
    assert {build["target"] for build in builds} == {"servers", "graft"} <= set(STAGES)
    assert {"cpu-requirements", "gpu-requirements"} <= set(STAGES)


def test_bytecode_is_written() -> None:
    assert "PYTHONDONTWRITEBYTECODE" not in DOCKERFILE.read_text()


def test_what_is_copied_is_in_the_context() -> None:
    allowed = [line[1:] for line in ignore_lines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in allowed)
    for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE):
        sources = words.split()[:-1]
        assert sources == ["."] or set(sources) <= set(allowed)


def test_the_context_holds_all_packages_and_no_secret() -> None:
    assert ignore_lines()[0] == "*"
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    allowed = {line[1:] for line in ignore_lines() if line.startswith("!")}
    assert {package.removesuffix("*") for package in packages} <= allowed
    assert not any(".env" in name or name == "docker" for name in allowed)


@pytest.mark.parametrize("extra", [None, "object-store", "servers"])
def test_requirements_are_those_of_the_project(extra: str | None) -> None:
    command = [sys.executable, str(FOLDER / "requirements.py"), *([extra] if extra else [])]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed.splitlines() == (project["optional-dependencies"][extra] if extra else project["dependencies"])


def test_servers_are_of_the_versions_that_the_pipeline_talks_to() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    servers = set(project["optional-dependencies"]["servers"])
    shared = {name for name in project["dependencies"] if re.match(r"(prefect|fastapi|sqlalchemy|mlflow)\W", name)}
    assert len(shared) == 4
    assert shared <= servers


def ignore_lines() -> list[str]:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]
