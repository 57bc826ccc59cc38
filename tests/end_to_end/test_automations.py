"""What the Prefect server does by itself: it tells of runs that ended, and runs a recipe when its data changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.automations import NEW_DATA, run_on_new_data, tell_of_new_data
from flows.watch import Change
from tests.end_to_end.command import RECIPE, ROOT, PrefectApi, WarmGraft, environment, eventually

AUTOMATIONS = ROOT / "docker" / "automations"


@pytest.fixture
def client(prefect: PrefectApi) -> Iterator[SyncPrefectClient]:
    """A client of the server; the automations that a test makes are gone after it."""
    with temporary_settings({PREFECT_API_URL: prefect.url}), get_client(sync_client=True) as client:
        yield client
        for known in prefect.ask("automations"):
            client.delete_automation(uuid.UUID(known["id"]))


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server on this machine, and what it was sent."""
    received: list[dict[str, Any]] = []

    class Inbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Inbox)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook?token=secret", received
    server.shutdown()
    thread.join()
    server.server_close()


def create(name: str, block: Any, folder: Path, url: str) -> None:
    """Create an automation from its file, as its users do."""
    block_id = block.save(f"graft-{name}", overwrite=True)
    file = folder / f"{name}.yaml"
    file.write_text((AUTOMATIONS / f"{name}.yaml").read_text().replace("BLOCK_ID", str(block_id)))
    command = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(file)]
    done = subprocess.run(command, env=os.environ | {"PREFECT_API_URL": url}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_who_asks_for_it_hears_of_runs_that_ended(
    client: SyncPrefectClient, inbox: tuple[str, list[dict[str, Any]]], prefect: PrefectApi, home: Path, warm: WarmGraft
) -> None:
    address, received = inbox
    message = CustomWebhookNotificationBlock(
        name="chat", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    )
    create("ended", Webhook(url=address), home, prefect.url)
    create("failed", message, home, prefect.url)
    # Flow runs are named for the recipe's file: this name is of this test alone.
    recipe = shutil.copy(RECIPE, home / "told.yaml")
    env = environment(home, prefect_api_url=prefect.url)
    ok = warm("run", recipe, "--only", "index_pretext", "--force", "index_pretext", env=env)
    too_many = ("--set", "cluster_features.num_clusters=80", "--only", "cluster_features")
    bad = warm("run", recipe, *too_many, env=env)
    assert (ok.code, bad.code) == (0, 1)
    eventually(lambda: len([one for one in received if "told" in str(one)]) >= 3, what="three messages")
    ended = [one for one in received if one.get("recipe") == "told"]
    assert sorted(one["state"] for one in ended) == ["Completed", "Failed"]
    failed = next(one for one in ended if one["state"] == "Failed")
    assert "num_clusters must be at most" in failed["message"] and "/flow-run/" in failed["link"]
    (chat,) = [one for one in received if "subject" in one and "told" in one["subject"]]
    assert chat["subject"] == "graft: told is Failed" and "num_clusters must be at most" in chat["body"]


def test_new_data_runs_the_recipe_once_where_that_is_switched_on(
    client: SyncPrefectClient, prefect: PrefectApi
) -> None:
    flow = client.create_flow_from_name("watched")
    pipeline = client.create_deployment(flow, name="pipeline")
    run_on_new_data(client, pipeline)
    (made,) = client.read_automations_by_name(NEW_DATA)
    assert made.enabled is False
    # As the switch in the interface does.
    client.request("PATCH", f"/automations/{made.id}", json={"enabled": True}).raise_for_status()
    # Deployed again, it stays as somebody wanted it.
    run_on_new_data(client, pipeline)
    (again,) = client.read_automations_by_name(NEW_DATA)
    assert (again.id, again.enabled) == (made.id, True)

    first, second = Change(uuid.uuid4(), ["index_pretext"]), Change(uuid.uuid4(), ["index_pretext"])
    for recipe, change in (("one", first), ("one", first), ("two", second)):
        tell_of_new_data(client, recipe, change)

    def runs() -> list[str]:
        found = prefect.ask("flow_runs", deployments={"id": {"any_": [str(pipeline)]}})
        return sorted(run["parameters"]["request"]["recipe"] for run in found)

    # Events come in order: when the second is here, the first was not told of twice.
    eventually(lambda: "two" in runs(), what="a run for the second recipe")
    eventually(lambda: "one" in runs(), what="a run for the first recipe")
    assert runs() == ["one", "two"]
