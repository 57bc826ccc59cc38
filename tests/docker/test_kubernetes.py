"""The manifests, and the job that Prefect makes of the template, against the schemas of Kubernetes.

What is not tested: that a cluster accepts and runs them.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from flows.deploy import POOL, PROJECT_FILE
from tests.docker.composition import FOLDER, services

MANIFESTS = [
    manifest
    for path in sorted((FOLDER / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]
TEMPLATE = json.loads((FOLDER / "kubernetes" / "job-template.json").read_text())
OLDEST, NEWEST = "1.31", "1.37"


def rendered(**values: Any) -> KubernetesWorkerJobConfiguration:
    """What the worker makes of the template for a flow run."""
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, values, client=object())
    )
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), name="Clever Mole", flow_id=uuid4()))
    return configuration


def deployed() -> dict[str, Any]:
    """The variables of a deployment of prefect.yaml."""
    pipeline = yaml.safe_load(PROJECT_FILE.read_text())["deployments"][0]
    variables: dict[str, Any] = pipeline["work_pool"]["job_variables"]
    return variables


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda manifest: f"{manifest['kind']} {manifest['metadata']['name']}"
)
def test_a_manifest_is_what_the_schema_says(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)
    assert manifest["metadata"]["namespace"] == "graft"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", [{}, {"gpus": 0, "image": "graft-cpu:0.1.0", "env": {"GRAFT_DEVICE": "cpu"}}])
def test_the_job_is_what_the_schema_says(values: dict[str, Any], version: str) -> None:
    job = rendered(**(deployed() | values)).job_manifest
    pod = job["spec"]["template"]["spec"]
    # prefect-kubernetes asks for them here, where Kubernetes knows none and passes over them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    kubernetes_validate.validate(job, version, strict=True)


def test_a_deployment_sets_only_what_the_template_has() -> None:
    assert set(deployed()) <= set(TEMPLATE["variables"]["properties"])


def test_every_placeholder_is_a_variable_and_every_variable_is_used() -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])


def test_the_job_has_a_gpu_and_the_volume_of_the_checkpoints() -> None:
    container = rendered().job_manifest["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    (settings,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "ConfigMap")
    (claim,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "PersistentVolumeClaim")
    assert {"name": "home", "mountPath": settings["data"]["GRAFT_HOME"]} in container["volumeMounts"]
    assert TEMPLATE["variables"]["properties"]["home_claim"]["default"] == claim["metadata"]["name"]


def test_the_job_refers_to_the_secret_and_does_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker passes its own settings on; with those of its manifest, the password of the API only by name."""
    (worker,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    variables = {
        entry["name"]: entry.get("value") for entry in worker["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    configuration = rendered(env={"PREFECT_API_AUTH_STRING": "graft:hidden"})
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    asyncio.run(
        KubernetesWorker(POOL)._replace_env_variable_with_secret(
            env_variable_name="PREFECT_API_AUTH_STRING",
            configuration=configuration,
            secret_name=variables[f"{prefix}_NAME"],
            secret_key=variables[f"{prefix}_KEY"],
        )
    )
    assert "hidden" not in json.dumps(configuration.job_manifest)
    container = configuration.job_manifest["spec"]["template"]["spec"]["containers"][0]
    reference = {"secretKeyRef": {"name": "graft", "key": "PREFECT_API_AUTH_STRING"}}
    assert {"name": "PREFECT_API_AUTH_STRING", "valueFrom": reference} in container["env"]


def test_no_manifest_holds_a_secret() -> None:
    assert not [manifest for manifest in MANIFESTS if manifest["kind"] == "Secret"]
    text = "".join(path.read_text() for path in (FOLDER / "kubernetes").iterdir())
    assert not re.search(r"(PASSWORD|SECRET_ACCESS_KEY|AUTH_STRING)\"?: *\"?\S", text)


def test_the_images_are_those_of_compose() -> None:
    (worker,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    assert worker["spec"]["template"]["spec"]["containers"][0]["image"] == services()["prefect"]["image"]
    version = services()["worker"]["image"].rsplit(":", 1)[1]
    assert TEMPLATE["variables"]["properties"]["image"]["default"] == f"graft-gpu:{version}"


def test_the_worker_serves_the_pool_of_the_deployments() -> None:
    (worker,) = (manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    command = worker["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--pool") + 1] == POOL
