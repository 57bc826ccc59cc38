"""The compose file: right in form, complete, and closed to the outside."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.docker.composition import FILE, KEYS, ROOT, SECRETS, VARIABLE, composition, example, services

OWN = [name for name, service in services().items() if "build" in service]
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def test_the_file_is_what_the_specification_says() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", FILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_variable_is_in_the_example_and_no_other() -> None:
    used = {match[1] for match in VARIABLE.finditer(FILE.read_text())}
    # Compose itself reads COMPOSE_PROFILES.
    assert set(example()) == used | {"COMPOSE_PROFILES"}
    assert {*SECRETS, *KEYS} <= used


def test_no_variable_has_a_default() -> None:
    assert FILE.read_text().count("$") == len(VARIABLE.findall(FILE.read_text()))
    assert {name: value for name, value in example().items() if value} == {"COMPOSE_PROFILES": "${GRAFT_VARIANT}"}


@pytest.mark.parametrize("name", services())
def test_what_is_secret_comes_from_outside(name: str) -> None:
    for variable, value in services()[name].get("environment", {}).items():
        if any(word in variable for word in ("PASSWORD", "SECRET", "AUTH_STRING", "ACCESS_KEY")):
            assert VARIABLE.fullmatch(value), variable


@pytest.mark.parametrize("name", services())
def test_only_the_loopback_address_is_published(name: str) -> None:
    for port in services()[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_only_the_two_servers_are_published() -> None:
    assert {name for name, service in services().items() if "ports" in service} == {"prefect", "mlflow"}


def test_the_stores_have_no_way_out_and_no_worker_reaches_them() -> None:
    assert composition()["networks"]["back"] == {"internal": True}
    assert {name for name, service in services().items() if service["networks"] == ["back"]} == {
        "postgres",
        "redis",
        "s3",
        "bucket",
    }
    for name in ("deploy", "worker", "worker-gpu"):
        assert services()[name]["networks"] == ["front"]


@pytest.mark.parametrize("name", services())
def test_a_service_comes_back_and_does_not_fill_the_disk(name: str) -> None:
    service = services()[name]
    once = name in ("bucket", "deploy")
    assert service["restart"] == ("on-failure" if once else "unless-stopped")
    assert service["logging"]["options"]["max-size"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", sorted(services()))
def test_who_waits_for_a_service_waits_for_what_it_can_say(name: str) -> None:
    for other, how in services()[name].get("depends_on", {}).items():
        needed = services()[other]
        if how["condition"] == "service_healthy":
            assert needed["healthcheck"]["test"][0] == "CMD"
        else:
            assert how["condition"] == "service_completed_successfully"
            assert needed["restart"] == "on-failure"


@pytest.mark.parametrize("name", OWN)
def test_our_own_processes_may_do_nothing_special_and_tell_nobody(name: str) -> None:
    service = services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["init"] is True
    if name != "bucket":
        assert service["environment"].items() >= QUIET.items()


def test_images_are_pinned_and_ours_bear_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in services().items():
        tag = service["image"].rsplit(":", 1)[1]
        assert tag == version if name in OWN else any(sign.isdigit() for sign in tag), name


def test_every_volume_is_named() -> None:
    named = composition()["volumes"]
    for service in services().values():
        for volume in service.get("volumes", []):
            source = volume.split(":/")[0]
            assert source in named or source.startswith(("./", "${DATA_FOLDER"))
