"""What docker/compose.yaml says, as the tests read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker"
FILE = FOLDER / "compose.yaml"
# The one form in use: a value that must be given, and a word for whoever did not. `$` has no other meaning there.
VARIABLE = re.compile(r"\$\{(\w+):\?([^}]*)\}")
SECRETS = ("POSTGRES_PASSWORD", "PREFECT_AUTH_STRING", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY")
KEYS = ("S3_ACCESS_KEY", "S3_SECRET_KEY")


def composition() -> dict[str, Any]:
    """The file with anchors resolved and variables as they are."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return content


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = composition()["services"]
    return found


def example() -> dict[str, str]:
    """The variables of .env.example."""
    lines = (FOLDER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables replaced; one that has no value raises KeyError."""
    return VARIABLE.sub(lambda match: values[match[1]], text)
