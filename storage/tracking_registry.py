"""MLflow's model registry: what a run made becomes a version, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.tracking_runs import KEY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# On the newest version; which one is the champion is for people to say.
CANDIDATE = "candidate"


def register(client: MlflowClient, *, name: str, run: Run) -> str:
    """Make the artifacts of a run a version of a registered model, unless one of the same key is there.

    Args:
        name: of the model, which is made if it is not there.
    Returns:
        The version.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    key = run.data.tags[KEY_TAG]
    known = client.search_model_versions(f"name = '{name}'")
    own = [one for one in known if one.tags.get(KEY_TAG) == key]
    made = (
        own[0]
        if own
        else client.create_model_version(
            name, source=run.info.artifact_uri, run_id=run.info.run_id, tags={KEY_TAG: key}
        )
    )
    newest = max((int(one.version) for one in known), default=0)
    # Also of a version that was there: a kill may have come before its alias.
    if int(made.version) >= newest:
        client.set_registered_model_alias(name, CANDIDATE, str(made.version))
    return str(made.version)
