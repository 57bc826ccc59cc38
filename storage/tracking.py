"""The door to MLflow: sends outboxes, and finds what was made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from storage.errors import CorruptFile, StoreAway, StoreUnwritable
from storage.outbox import Outbox
from storage.receipts import Receipts, parents_of, scrubbed, without_secrets
from storage.tracking_client import open_client
from storage.tracking_delivery import Delivery
from storage.tracking_pages import RunPage
from storage.tracking_runs import KEY_TAG, URI_TAG, experiments, tagged_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
        init_lock: file that keeps two processes from making the same thing in MLflow at once.
        browser_uri: where a browser finds MLflow's pages, if it is not the tracking URI.
    Attributes:
        uri: the tracking URI without secrets, to be shown.
        receipts: what was sent, as the outboxes' own files tell.
    """

    def __init__(
        self, uri: str, *, artifact_location: str | None, init_lock: Path, browser_uri: str | None = None
    ) -> None:
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
        self._browser_uri = without_secrets(browser_uri) if browser_uri else self.uri

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
            delivery = Delivery(
                self._client(),
                outbox,
                record,
                receipts=self.receipts,
                artifact_location=self._artifact_location,
                lock=self._init_lock,
            )
            delivery.send(parents=parents_of(record, given=parent))
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
            runs = tagged_runs(self._client(), KEY_TAG, key, finished=True)
            found = [run for run in runs if URI_TAG in run.data.tags]
            return [Found(run.info.run_id, run.data.tags[URI_TAG]) for run in found]

    def page_of(self, outbox: Outbox) -> RunPage | None:
        """Where a browser finds the run of an outbox; None when there is no server, or it has not the run."""
        receipt = self.receipts.read(outbox)
        return self._page(receipt.run_id, receipt.experiment_id) if receipt else None

    def page_of_key(self, key: str) -> RunPage | None:
        """Where a browser finds the run that made the artifact of a key; None when there is no server, or no such run.

        Raises:
            TrackingAway: MLflow does not answer.
        """
        if not self.has_pages:
            return None
        with self._translated():
            runs = tagged_runs(self._client(), KEY_TAG, key, finished=True)
            return self._page(runs[0].info.run_id, runs[0].info.experiment_id) if runs else None

    @property
    def has_pages(self) -> bool:
        """Whether there is a server, or only a database that no browser can open."""
        return self._browser_uri.startswith("http")

    def _page(self, run_id: str, experiment_id: str) -> RunPage | None:
        return RunPage(self._browser_uri.rstrip("/"), experiment_id, run_id) if self.has_pages else None

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
            runs = self._client().search_runs(experiments(self._client()), f"attributes.run_id = '{run_id}'")
            return runs[0].data.tags.get(KEY_TAG) if runs else None

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
