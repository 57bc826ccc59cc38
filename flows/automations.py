"""What a Prefect server does by itself when it hears of something; `graft deploy` puts it there."""

from __future__ import annotations

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events import Event
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import Resource, ResourceSpecification

from flows.watch import Change

DATA_CHANGED = "graft.data.changed"
NEW_DATA = "graft runs a recipe when its data changed"
RECIPE = "graft.recipe"


def run_on_new_data(client: SyncPrefectClient, pipeline: UUID) -> None:
    """Let new data start the deployment of the pipeline; switched off until somebody switches it on in Prefect."""
    known = client.read_automations_by_name(NEW_DATA)
    automation = AutomationCore(
        name=NEW_DATA,
        description="Runs the deployment `pipeline` for a recipe when the deployment `watch-data` saw new data for it.",
        enabled=known[0].enabled if known else False,
        trigger=EventTrigger(
            expect={DATA_CHANGED},
            match=ResourceSpecification({"prefect.resource.id": f"{RECIPE}.*"}),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=pipeline,
                parameters={"request": {"recipe": "{{ event.payload.recipe }}"}},
            )
        ],
    )
    if known:
        client.update_automation(known[0].id, automation)
    else:
        client.create_automation(automation)


def tell_of_new_data(client: SyncPrefectClient, recipe: str, change: Change) -> None:
    """Tell Prefect that data of a recipe changed; returns when the server has it.

    Raises:
        httpx.HTTPError: the server did not take it.
    """
    event = Event(
        id=change.id,
        event=DATA_CHANGED,
        resource=Resource({"prefect.resource.id": f"{RECIPE}.{change.id}", "prefect.resource.name": recipe}),
        payload={"recipe": recipe, "steps": change.steps},
    )
    client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
