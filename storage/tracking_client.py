"""Opens MLflow: a server, or a database that this process reads and writes itself."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from storage.folder import Folder
from storage.places import turn

if TYPE_CHECKING:
    from mlflow import MlflowClient

# A training waits for no server: give up soon, what is not sent now is sent later.
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def open_client(uri: str, *, database: Path | None, init_lock: Path) -> MlflowClient:
    """A client of MLflow, without telemetry, that tries but little.

    Args:
        database: the SQLite file that `uri` names, if it names one; it is made where it is not there.
        init_lock: file that keeps two processes from making it at once.
    """
    be_quiet()
    for name, value in IMPATIENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # What goes wrong is said once, by us, without the secrets that a traceback may show.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    if database is not None:
        with turn(init_lock):
            if not database.exists():
                _make_database(database)
    return MlflowClient(uri)


def be_quiet() -> None:
    """To be called before MLflow is imported: it shall tell nobody."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")


def _make_database(path: Path) -> None:
    """Make a fresh database elsewhere and put it in place whole: MLflow cannot open a half-made one again."""
    from mlflow import MlflowClient

    # Its some hundred commits wait for the disk, one by one, unless they are in memory.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(dir=memory) as folder:
        fresh = Path(folder) / path.name
        MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
        Folder(path.parent).write(path.name, fresh.read_bytes())
