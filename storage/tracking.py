"""The door to MLflow: sends outboxes, and finds what was made."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from posixpath import basename, dirname
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from storage.errors import CorruptFile, StoreAway, StoreUnwritable
from storage.limits import PARAM_CHARACTERS, ROWS_PER_REQUEST, TAG_CHARACTERS, dataset_digest, fit
from storage.outbox import Outbox, RunEnd, RunInput, RunRecord
from storage.places import Place
from storage.receipts import Receipt, Receipts, parents_of, scrubbed, without_secrets
from storage.tracking_client import open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

log = logging.getLogger(__name__)

UID_TAG = "graft.run_uid"
KEY_TAG = "graft.key"
URI_TAG = "graft.uri"
PARENT_TAG = "mlflow.parentRunId"
STEP_KEY = re.compile(r"step\..+\.key")

# The most that MLflow lists at once; its default would hide experiments beyond a thousand.
MAX_EXPERIMENTS = 50_000


class TrackingAway(RuntimeError):
    """MLflow does not answer, or refuses; what was to be sent is still in the outbox."""


class Found(NamedTuple):
    """A finished run that made an artifact, and where the artifact lies."""

    run_id: str
    uri: str


class Tracking:
    """One MLflow: a server, or a database that this process opens itself. Making one opens nothing.

    Args:
        uri: tracking URI, a database's with an absolute path (`sqlite:////home/me/.graft/mlflow.db`).
        artifact_location: where files of experiments go; None: the server's choice, or beside a SQLite file.
        init_lock: file that keeps two processes from making a fresh SQLite file at once.
    Attributes:
        uri: the tracking URI without secrets, to be shown.
        receipts: what was sent, as the outboxes' own files tell.
    """

    def __init__(self, uri: str, *, artifact_location: str | None, init_lock: Path) -> None:
        self._uri = uri
        database = self._sqlite_file()
        # MLflow's own choice is the folder in which the command happens to run.
        beside = str(database.absolute().parent / "mlflow-artifacts") if database is not None else None
        self._artifact_location = artifact_location or beside
        self._init_lock = init_lock
        self._opening = threading.Lock()
        self._opened: MlflowClient | None = None
        self.uri = without_secrets(uri)
        self.receipts = Receipts(self.uri)

    def deliver(self, outbox: Outbox, *, parent: Outbox | None = None) -> bool:
        """Send what is not yet sent. Sending again changes nothing; processes that send at once take turns.

        Args:
            parent: the pipeline's outbox; it is sent before, and gets the tag `step.NAME.run_id`.
        Returns:
            Whether all is there; False also while the parent's run is not.
        Raises:
            TrackingAway: MLflow did not take it; what it did take is remembered.
            StoreUnwritable: the outbox cannot be written to.
            StoreAway: the outbox cannot be reached.
        """
        if self.receipts.is_complete(outbox, parent=parent):
            return True
        if parent is not None:
            self.deliver(parent)
        record = outbox.record()
        if record is None:
            return True
        with outbox.folder.place.turn(".delivery.lock"), self._translated():
            # Before anything is read: what is added meanwhile makes another state, which is sent next time.
            state = outbox.state()
            receipt = self._open_run(outbox, record)
            self._send(outbox, record, receipt, end=state.end)
            self._link(record, receipt, parents=parents_of(record, given=parent))
            receipt.state = state
            self.receipts.keep(outbox, receipt)
        return self.receipts.is_complete(outbox, parent=parent)

    def find(self, key: str) -> list[Found]:
        """The finished runs of a key, newest first.

        Raises:
            TrackingAway: MLflow does not answer.
        """
        database = self._sqlite_file()
        if database is not None and not database.exists():
            return []
        with self._translated():
            runs = self._search(KEY_TAG, key, finished=True)
            found = [run for run in runs if URI_TAG in run.data.tags]
            return [Found(run.info.run_id, run.data.tags[URI_TAG]) for run in found]

    def prepare(self) -> None:
        """Make the database, where this is one that is not there yet: two processes at once could not.

        Raises:
            TrackingAway: MLflow does not answer.
        """
        with self._translated():
            self._client()

    def key_of(self, run_id: str) -> str | None:
        """The key of the artifact that a run made; None where there is no such run, or it made none.

        Raises:
            TrackingAway: MLflow does not answer.
        """
        with self._translated():
            experiments = [one.experiment_id for one in self._client().search_experiments(max_results=MAX_EXPERIMENTS)]
            runs = self._client().search_runs(experiments, f"attributes.run_id = '{run_id}'")
            return runs[0].data.tags.get(KEY_TAG) if runs else None

    def _open_run(self, outbox: Outbox, record: RunRecord) -> Receipt:
        # The run's own tag tells, not the receipt: a kill may come between making the run and keeping its
        # id, and a database may be made anew.
        runs = self._search(UID_TAG, record.uid)
        receipt = self.receipts.read(outbox)
        if receipt is not None and receipt.run_id in {run.info.run_id for run in runs}:
            return receipt
        if not runs:
            experiment, tags = self._experiment(record.experiment), {UID_TAG: record.uid}
            runs = [self._client().create_run(experiment, record.start_time, tags, run_name=record.name)]
        receipt = Receipt(run_id=runs[0].info.run_id, experiment_id=runs[0].info.experiment_id)
        self.receipts.keep(outbox, receipt)
        return receipt

    def _send(self, outbox: Outbox, record: RunRecord, receipt: Receipt, *, end: RunEnd | None) -> None:
        from mlflow.entities import RunTag

        if not receipt.recorded:
            self._send_record(receipt.run_id, record)
            receipt.recorded = True
            self.receipts.keep(outbox, receipt)
        self._send_rows(outbox, receipt)
        tags = record.tags | outbox.tags()
        run_tags = [RunTag(name, fit(value, limit=TAG_CHARACTERS)) for name, value in tags.items()]
        self._client().log_batch(receipt.run_id, tags=run_tags)
        self._resolve_steps(receipt.run_id, tags)
        self._send_end(outbox, receipt, end)

    def _send_rows(self, outbox: Outbox, receipt: Receipt) -> None:
        from mlflow.entities import Metric

        for position, rows in outbox.rows(after=receipt.position):
            for start in range(0, len(rows), ROWS_PER_REQUEST):
                metrics = [Metric(*row) for row in rows[start : start + ROWS_PER_REQUEST]]
                self._client().log_batch(receipt.run_id, metrics=metrics)
            # Killed before this line, the rows are sent again: MLflow keeps equal rows once.
            receipt.position = position
            self.receipts.keep(outbox, receipt)

    def _send_record(self, run_id: str, record: RunRecord) -> None:
        from mlflow.entities import Param

        params = [Param(name, fit(value, limit=PARAM_CHARACTERS)) for name, value in record.params.items()]
        self._client().log_batch(run_id, params=params)
        if record.inputs:
            self._client().log_inputs(run_id, datasets=[_dataset_input(item) for item in record.inputs])

    def _resolve_steps(self, run_id: str, tags: dict[str, str]) -> None:
        """The tag `step.NAME.key` names what a step reuses; say which run made it, if it is here."""
        steps = {name.removesuffix(".key"): key for name, key in tags.items() if STEP_KEY.fullmatch(name)}
        for step, key in steps.items():
            made = self._search(KEY_TAG, key, finished=True)
            if made:
                self._client().set_tag(run_id, f"{step}.run_id", made[0].info.run_id)

    def _send_end(self, outbox: Outbox, receipt: Receipt, end: RunEnd | None) -> None:
        client = self._client()
        if end is None:
            if client.get_run(receipt.run_id).info.status != "RUNNING":
                client.update_run(receipt.run_id, status="RUNNING")
            return
        if receipt.end != end:
            for artifact_path, address in end.files.items():
                self._send_file(receipt.run_id, artifact_path, address, outbox.folder.place)
            receipt.end = end
        client.set_terminated(receipt.run_id, status=end.status, end_time=end.end_time)

    def _send_file(self, run_id: str, artifact_path: str, address: str, place: Place) -> None:
        try:
            # MLflow names a file after its source.
            with place.opened(address) as path, TemporaryDirectory() as folder:
                source = Path(folder) / basename(artifact_path)
                source.symlink_to(path.absolute())
                self._client().log_artifact(run_id, str(source), dirname(artifact_path) or None)
        except FileNotFoundError:
            log.warning("%s is not sent to MLflow as %s: the file is gone", address, artifact_path)

    def _link(self, record: RunRecord, receipt: Receipt, *, parents: set[str]) -> None:
        for uid in parents - receipt.parents:
            run = next(iter(self._search(UID_TAG, uid)), None)
            if run is None:
                continue
            if uid == record.parent:
                self._client().set_tag(receipt.run_id, PARENT_TAG, run.info.run_id)
            self._client().set_tag(run.info.run_id, f"step.{record.name}.run_id", receipt.run_id)
            receipt.parents.add(uid)

    def _search(self, tag: str, value: str, *, finished: bool = False) -> list[Run]:
        """Runs with a tag, of all experiments: all by their start, or the finished ones, newest first."""
        client = self._client()
        experiments = [one.experiment_id for one in client.search_experiments(max_results=MAX_EXPERIMENTS)]
        status = " AND attributes.status = 'FINISHED'" if finished else ""
        order = "attributes.end_time DESC" if finished else "attributes.start_time ASC"
        return list(client.search_runs(experiments, f"tags.`{tag}` = '{value}'{status}", order_by=[order]))

    def _experiment(self, name: str) -> str:
        client = self._client()
        from mlflow.exceptions import MlflowException

        known = client.get_experiment_by_name(name)
        if known is None:
            # The page of an experiment without this tag shows no list of training runs.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return str(client.create_experiment(name, self._artifact_location, tags))
            except MlflowException as error:
                known = client.get_experiment_by_name(name)
                if error.error_code != "RESOURCE_ALREADY_EXISTS" or known is None:
                    raise
        return str(known.experiment_id)

    def _client(self) -> MlflowClient:
        with self._opening:
            if self._opened is None:
                self._opened = open_client(self._uri, database=self._sqlite_file(), init_lock=self._init_lock)
            return self._opened

    def _sqlite_file(self) -> Path | None:
        scheme, _, path = self._uri.partition(":///")
        return Path(path) if scheme == "sqlite" else None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (CorruptFile, StoreAway, StoreUnwritable):
            raise
        except Exception as error:
            cause = scrubbed(" ".join(f"{type(error).__name__}: {error}".split()), uri=self._uri)[:300]
            # Without its cause: the messages of the libraries below hold the whole URI.
            raise TrackingAway(f"MLflow at {self.uri} must take what is sent, but: {cause}") from None


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
