"""Runtime: where and how fast things run. Nothing here ever changes a result or a key."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from storage.read_cache import ReadCache

DATA_PREFIX = "GRAFT_DATA_"


def default_home() -> Path:
    return Path.home() / ".graft"


class Runtime(BaseSettings):
    """All settings of a machine, read from GRAFT_* variables; those of Prefect and MLflow follow from them."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_", frozen=True, extra="forbid")

    home: Path = Field(default_factory=default_home, description="Folder of everything Graft keeps.")
    store: str | Path | None = Field(
        None,
        description="Folder or URL (s3://bucket/prefix) of the artifacts; GRAFT_HOME/store by default.",
    )
    store_cache_gb: PositiveFloat = Field(
        50.0, description="Most that copies of what lies in an object store take in GRAFT_HOME, in GB."
    )
    tracking_uri: str | None = Field(None, description="MLflow's address; a SQLite file in GRAFT_HOME by default.")
    tracking_ui_url: str | None = Field(None, description="MLflow's address for browsers, if it is another one.")
    prefect_api_url: str | None = Field(None, description="Prefect's address; a local server is started by default.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto is cuda where there is one.")
    workers: NonNegativeInt = Field(
        default_factory=lambda: max(1, (os.cpu_count() or 1) - 1),
        description="Processes that decode images, of all ranks together.",
    )
    ranks: PositiveInt = Field(1, description="Processes that share the work of a step, one GPU each.")
    ranks_engine: Literal["torchrun", "ray"] = Field("torchrun", description="One machine; or those of a Ray cluster.")
    batch_rows: PositiveInt = Field(256, description="Images a forward pass in extraction.")
    kmeans_engine: Literal["torch", "faiss"] = Field("torch", description="Finds nearest centroids; equal results.")
    checkpoint_seconds: float = Field(60.0, ge=0, description="Time between checkpoints; 0 is after every step.")
    lease_seconds: PositiveFloat = Field(60.0, description="After this time without a sign of life others take over.")
    data: dict[str, Path] = Field(default_factory=dict, description="Dataset name -> folder or file.")

    @classmethod
    def load(cls, *, data: dict[str, Path] | None = None, **changes: Any) -> Runtime:
        """Settings from the environment; what is given here wins.

        Args:
            data: dataset name -> place, added to those of GRAFT_DATA_<NAME>.
            changes: other settings.
        """
        places = {_name(key): Path(value) for key, value in os.environ.items() if key.startswith(DATA_PREFIX)}
        places |= {_name(DATA_PREFIX + name): place for name, place in (data or {}).items()}
        return cls(data=places, **changes)

    def place(self, name: str) -> Path | None:
        """Where the dataset of that name lies, or None when nobody said."""
        return self.data.get(_name(DATA_PREFIX + name))

    @property
    def store_root(self) -> Path | str:
        """Where artifacts lie: a folder, or a URL."""
        if isinstance(self.store, str) and "://" in self.store:
            return self.store
        return Path(self.store or self.home / "store").absolute()

    @property
    def read_cache(self) -> ReadCache:
        """Copies of what is read from an object store."""
        return ReadCache(self.cache / "objects", limit_bytes=int(self.store_cache_gb * 10**9))

    @property
    def cache(self) -> Path:
        """Folder of what can be made again from its source."""
        return self.home.absolute() / "cache"

    @property
    def mlflow_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.home.absolute() / 'mlflow.db'}"

    @property
    def torch_device(self) -> str:
        """The device as torch names it."""
        if self.device != "auto":
            return self.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def vendor_environment(self) -> dict[str, str]:
        """The variables that tell Prefect, MLflow and Ray what these settings say; telemetry is off in all of them."""
        variables = {
            "DO_NOT_TRACK": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            # The command shows its own progress; all of it goes to the server as well.
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,storage,models,flows",
            # What is said before or after the flow run is on the terminal.
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
            "PREFECT_HOME": str(self.home.absolute() / "prefect"),
        }
        if self.prefect_api_url:
            variables["PREFECT_API_URL"] = self.prefect_api_url
        return variables


def _name(variable: str) -> str:
    """`GRAFT_DATA_MY_PHOTOS` and `my-photos` name the same dataset."""
    return re.sub(r"[^a-z0-9]", "_", variable.removeprefix(DATA_PREFIX).lower())
