"""What a MLflow has of an outbox already, kept in the outbox: one receipt a MLflow."""

from __future__ import annotations

import hashlib
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict

from storage.folder import Folder
from storage.outbox import Outbox, OutboxState, RunEnd, RunRecord


class Receipt(BaseModel):
    """What one MLflow has of an outbox.

    Attributes:
        recorded: params and inputs are sent.
        position: the last commit whose rows are sent.
        samples: the last sample of the machine that is sent.
        end: the end whose files are sent.
        parents: uids of the runs that were told of this one.
        state: the outbox as it was when all of it had been sent.
    """

    model_config = ConfigDict(extra="forbid")

    run_id: str
    experiment_id: str
    recorded: bool = False
    position: int = 0
    samples: int = 0
    end: RunEnd | None = None
    parents: set[str] = set()
    state: OutboxState | None = None


class Receipts:
    """The receipts of one MLflow, found by its URI without secrets.

    An outbox that was begun with another MLflow has no receipt here, so all of it is sent.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._name = f"delivered/{hashlib.sha256(uri.encode()).hexdigest()[:16]}.json"

    def read(self, outbox: Outbox) -> Receipt | None:
        """The receipt of an outbox, or None when nothing of it was sent."""
        try:
            return Receipt.model_validate_json(outbox.folder.read(self._name))
        except FileNotFoundError:
            return None

    def keep(self, outbox: Outbox, receipt: Receipt) -> None:
        """Write the receipt; a plain folder, because who sends has the turn, and not the stage's lease."""
        Folder(outbox.folder.place).write(self._name, receipt.model_dump_json().encode())

    def is_complete(self, outbox: Outbox, *, parent: Outbox | None) -> bool:
        """Whether all of an outbox was sent, and its parents know of it."""
        record = outbox.record()
        if record is None:
            return True
        receipt = self.read(outbox)
        return (
            receipt is not None
            and receipt.state == outbox.state()
            and parents_of(record, given=parent) <= receipt.parents
        )

    def waiting_rows(self, outbox: Outbox) -> int:
        """How many metric rows that may be sent are not yet sent."""
        receipt = self.read(outbox)
        position, samples = (receipt.position, receipt.samples) if receipt else (0, 0)
        return sum(len(rows) for _, rows in [*outbox.rows(after=position), *outbox.samples(after=samples)])


def parents_of(record: RunRecord, *, given: Outbox | None) -> set[str]:
    """Uids of the runs that list this one as a step: its pipeline, and a later one that goes on with it."""
    uids = {record.parent} if record.parent is not None else set()
    later = given.record() if given is not None else None
    return uids | {later.uid} if later is not None else uids


def without_secrets(uri: str) -> str:
    """A tracking URI without user, password and query, to be shown and kept."""
    scheme, separator, rest = uri.partition("?")[0].partition("://")
    # A database file's path may hold an @, which means nothing there.
    return uri if scheme == "sqlite" else f"{scheme}{separator}{rest.rpartition('@')[2]}"


def scrubbed(text: str, *, uri: str) -> str:
    """A message without the secrets of a tracking URI that it may quote."""
    shown = without_secrets(uri)
    text = text.replace(uri, shown)
    userinfo = uri.partition("://")[2].partition("?")[0].rpartition("@")[0] if shown != uri else ""
    password = userinfo.partition(":")[2]
    for secret in (f"{userinfo}@", password, unquote(password)):
        text = text.replace(secret, "") if len(secret) > 1 else text
    return text
