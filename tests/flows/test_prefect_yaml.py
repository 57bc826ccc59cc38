"""The deployments: Prefect drops what it does not know without a word, so every key is looked at here."""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger

from flows.deploy import CARE_QUEUE, POOL, PROJECT_FILE, RUNS_QUEUE, deployment_names
from flows.knowledge_transfer import knowledge_transfer
from flows.recipe import load_recipe
from tasks.runtime import Runtime

KEYS = {
    *("name", "entrypoint", "description", "tags", "work_pool", "parameters", "concurrency_limit", "schedules"),
    "triggers",
}
SCHEDULE_KEYS = {"slug", "cron", "timezone", "active"}
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    deployment["name"]: deployment for deployment in yaml.safe_load(PROJECT_FILE.read_text())["deployments"]
}
OF_STEPS = [name for name, one in DEPLOYMENTS.items() if "step" in one["tags"]]


def test_names_are_told_as_they_are() -> None:
    assert deployment_names() == list(DEPLOYMENTS)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_has_no_key_that_prefect_ignores(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    assert set(deployment) <= KEYS and deployment["description"] and "graft" in deployment["tags"]
    assert deployment["work_pool"]["name"] == POOL
    assert deployment["work_pool"]["work_queue_name"] in (RUNS_QUEUE, CARE_QUEUE)
    for schedule in deployment.get("schedules", []):
        assert set(schedule) == SCHEDULE_KEYS and schedule["active"] is False
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    for trigger in deployment.get("triggers", []):
        assert set(trigger) <= set(DeploymentEventTrigger.model_fields)
        DeploymentEventTrigger.model_validate(trigger)


@pytest.mark.parametrize("name", [name for name in DEPLOYMENTS if name != "recover"])
def test_a_deployment_runs_with_its_own_parameters(name: str) -> None:
    module, _, attribute = DEPLOYMENTS[name]["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), attribute)
    flow.validate_parameters(DEPLOYMENTS[name]["parameters"])


def test_every_step_of_a_recipe_has_one_deployment() -> None:
    steps: list[str] = []
    knowledge_transfer(load_recipe("smoke"), lambda step, stage, config, /, **inputs: steps.append(step))
    patterns = {name: DEPLOYMENTS[name]["parameters"]["request"]["only"] for name in OF_STEPS}
    for step in steps:
        fitting = [name for name, own in patterns.items() if any(fnmatchcase(step, pattern) for pattern in own)]
        assert len(fitting) == 1, (step, fitting)
    for name, own in patterns.items():
        assert any(fnmatchcase(step, pattern) for step in steps for pattern in own), name


def test_the_form_offers_the_recipes() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.orchestrated import knowledge_transfer_run

    properties = parameter_schema(knowledge_transfer_run).definitions["RunRequest"]["properties"]
    assert set(properties["recipe"]["enum"]) >= {"quickstart", "smoke"}
    assert all(properties[name]["description"] for name in properties)


def test_runs_get_the_variables_that_the_settings_derive() -> None:
    """A worker that was not started by `graft worker` has only these."""
    for deployment in DEPLOYMENTS.values():
        given = deployment["work_pool"]["job_variables"]["env"]
        derived = Runtime().vendor_environment()
        assert {name: given[name] for name in given if name in derived} == {
            name: derived[name] for name in given if name in derived
        }
        assert given["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30" and int(given["PREFECT_CLIENT_MAX_RETRIES"]) >= 6
