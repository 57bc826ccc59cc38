"""What goes over the wire when an outbox is sent: nothing that MLflow has already, and all that it has not."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from posixpath import basename, dirname
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from storage.limits import PARAM_CHARACTERS, ROWS_PER_REQUEST, TAG_CHARACTERS, dataset_digest, fit
from storage.outbox import Outbox, RunEnd, RunInput, RunRecord
from storage.places import turn
from storage.receipts import Receipt, Receipts
from storage.segments import Row
from storage.tracking_registry import register
from storage.tracking_runs import KEY_TAG, PARENT_TAG, UID_TAG, tagged_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

log = logging.getLogger(__name__)

STEP_KEY = re.compile(r"step\..+\.key")
MODEL_KEY = re.compile(r"model\.(.+)\.key")


class Delivery:
    """Sends one outbox to one MLflow. What went is noted in the outbox's receipt as it goes.

    Args:
        artifact_location: where files of a new experiment go; None: the server's choice.
        lock: file that keeps two processes from registering the same model at once.
    """

    def __init__(
        self,
        client: MlflowClient,
        outbox: Outbox,
        record: RunRecord,
        *,
        receipts: Receipts,
        artifact_location: str | None,
        lock: Path,
    ) -> None:
        self._client = client
        self._outbox = outbox
        self._record = record
        self._receipts = receipts
        self._artifact_location = artifact_location
        self._lock = lock

    def send(self, *, parents: set[str]) -> None:
        """Send what is not yet sent.

        Args:
            parents: uids of the runs that list this one as a step.
        """
        # Before anything is read: what is added meanwhile makes another state, which is sent next time.
        state = self._outbox.state()
        receipt = self._open_run()
        if not receipt.recorded:
            self._send_record(receipt.run_id)
            receipt.recorded = True
            self._receipts.keep(self._outbox, receipt)
        self._send_rows(receipt)
        self._send_tags(receipt.run_id)
        self._send_end(receipt, state.end)
        self._link(receipt, parents=parents)
        # Last: who may not register models shall have the rest.
        self._register_models(receipt.run_id)
        receipt.state = state
        self._receipts.keep(self._outbox, receipt)

    def _open_run(self) -> Receipt:
        # The run's own tag tells, not the receipt: a kill may come between making the run and keeping its
        # id, and a database may be made anew.
        runs = tagged_runs(self._client, UID_TAG, self._record.uid)
        receipt = self._receipts.read(self._outbox)
        if receipt is not None and receipt.run_id in {run.info.run_id for run in runs}:
            return receipt
        if not runs:
            experiment, tags = self._experiment(self._record.experiment), {UID_TAG: self._record.uid}
            runs = [self._client.create_run(experiment, self._record.start_time, tags, run_name=self._record.name)]
        receipt = Receipt(run_id=runs[0].info.run_id, experiment_id=runs[0].info.experiment_id)
        self._receipts.keep(self._outbox, receipt)
        return receipt

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known is None:
            # The page of an experiment without this tag shows no list of training runs.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return str(self._client.create_experiment(name, self._artifact_location, tags))
            except MlflowException as error:
                known = self._client.get_experiment_by_name(name)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or known is None:
                    raise
        return str(known.experiment_id)

    def _send_record(self, run_id: str) -> None:
        from mlflow.entities import Param

        params = [Param(name, fit(value, limit=PARAM_CHARACTERS)) for name, value in self._record.params.items()]
        self._client.log_batch(run_id, params=params)
        if self._record.inputs:
            self._client.log_inputs(run_id, datasets=[_dataset_input(item) for item in self._record.inputs])

    def _send_rows(self, receipt: Receipt) -> None:
        # Killed after the rows and before the receipt, they are sent again: MLflow keeps equal rows once.
        for position, rows in self._outbox.rows(after=receipt.position):
            self._log(receipt.run_id, rows)
            receipt.position = position
            self._receipts.keep(self._outbox, receipt)
        for number, rows in self._outbox.samples(after=receipt.samples):
            self._log(receipt.run_id, rows)
            receipt.samples = number
            self._receipts.keep(self._outbox, receipt)

    def _log(self, run_id: str, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        for start in range(0, len(rows), ROWS_PER_REQUEST):
            metrics = [Metric(*row) for row in rows[start : start + ROWS_PER_REQUEST]]
            self._client.log_batch(run_id, metrics=metrics)

    def _send_tags(self, run_id: str) -> None:
        from mlflow.entities import RunTag

        tags = self._record.tags | self._outbox.tags()
        run_tags = [RunTag(name, fit(value, limit=TAG_CHARACTERS)) for name, value in tags.items()]
        self._client.log_batch(run_id, tags=run_tags)
        self._resolve_steps(run_id, tags)

    def _resolve_steps(self, run_id: str, tags: dict[str, str]) -> None:
        """The tag `step.NAME.key` names what a step reuses; say which run made it, if it is here."""
        steps = {name.removesuffix(".key"): key for name, key in tags.items() if STEP_KEY.fullmatch(name)}
        for step, key in steps.items():
            made = tagged_runs(self._client, KEY_TAG, key, finished=True)
            if made:
                self._client.set_tag(run_id, f"{step}.run_id", made[0].info.run_id)

    def _send_end(self, receipt: Receipt, end: RunEnd | None) -> None:
        if end is None:
            if self._client.get_run(receipt.run_id).info.status != "RUNNING":
                self._client.update_run(receipt.run_id, status="RUNNING")
            return
        if receipt.end != end:
            for artifact_path, address in end.files.items():
                self._send_file(receipt.run_id, artifact_path, address)
            receipt.end = end
        self._client.set_terminated(receipt.run_id, status=end.status, end_time=end.end_time)

    def _send_file(self, run_id: str, artifact_path: str, address: str) -> None:
        try:
            # MLflow names a file after its source.
            with self._outbox.folder.place.opened(address) as path, TemporaryDirectory() as folder:
                source = Path(folder) / basename(artifact_path)
                source.symlink_to(path.absolute())
                self._client.log_artifact(run_id, str(source), dirname(artifact_path) or None)
        except FileNotFoundError:
            log.warning("%s is not sent to MLflow as %s: the file is gone", address, artifact_path)

    def _link(self, receipt: Receipt, *, parents: set[str]) -> None:
        for uid in parents - receipt.parents:
            run = next(iter(tagged_runs(self._client, UID_TAG, uid)), None)
            if run is None:
                continue
            if uid == self._record.parent:
                self._client.set_tag(receipt.run_id, PARENT_TAG, run.info.run_id)
            self._client.set_tag(run.info.run_id, f"step.{self._record.name}.run_id", receipt.run_id)
            receipt.parents.add(uid)

    def _register_models(self, run_id: str) -> None:
        """The tag `model.NAME.key` names what is to be registered; say which version it is, if its run is here."""
        models = {found[1]: key for name, key in self._outbox.tags().items() if (found := MODEL_KEY.fullmatch(name))}
        for model, key in models.items():
            made = tagged_runs(self._client, KEY_TAG, key, finished=True)
            if made:
                with turn(self._lock):
                    version = register(self._client, name=model, run=made[0])
                self._client.set_tag(run_id, f"model.{model}.version", version)


def _dataset_input(item: RunInput) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme = urlsplit(item.uri).scheme
    dataset = Dataset(
        name=item.name,
        digest=dataset_digest(item.digest),
        source_type="local" if scheme in ("", "file") else scheme,
        source=json.dumps({"uri": item.uri}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", item.context)])
