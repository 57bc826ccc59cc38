"""Where a browser finds what MLflow holds."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urlencode

# Else MLflow's pages open in the shape they have for chat applications, in which a run is an evaluation.
AS_TRAINING = "workflowType=machine_learning"


class RunPage(NamedTuple):
    """The page of a run on a MLflow server, named without secrets."""

    server: str
    experiment_id: str
    run_id: str

    @property
    def url(self) -> str:
        """The run itself."""
        return f"{self._place}?{AS_TRAINING}"

    def file_page(self, path: str) -> str:
        """A file of the run, shown beside the others."""
        return f"{self._place}/artifacts/{quote(path)}?{AS_TRAINING}"

    def file_url(self, path: str) -> str:
        """The bytes of a file of the run."""
        return f"{self.server}/get-artifact?{urlencode({'path': path, 'run_uuid': self.run_id})}"

    @property
    def _place(self) -> str:
        return f"{self.server}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
