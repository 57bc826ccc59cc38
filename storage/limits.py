"""What MLflow takes: names, and lengths of values (mlflow.utils.validation).

One name that MLflow refuses would keep a whole run from being sent, so names are held against its rules when
they are given. Longer values it would cut off without a trace.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from posixpath import normpath

NAME = re.compile(r"[/\w.\- :]{1,250}")
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
DIGEST_CHARACTERS = 36
ROWS_PER_REQUEST = 1000


def require_names(names: Iterable[str]) -> None:
    """Make sure that MLflow takes these as names of metrics, params or tags.

    Raises:
        ValueError: names the first that it would refuse.
    """
    for name in names:
        if not NAME.fullmatch(name) or normpath(name) != name or name.startswith(("/", "..")) or name == ".":
            raise ValueError(
                "the name of a metric, param or tag must be 1 to 250 letters, digits, and _ - . : / or "
                f"spaces, and a plain relative path; got {name!r}. Rename it"
            )


def fit(value: str, *, limit: int) -> str:
    """A value of at most `limit` characters; a shortened one ends in the sha256 of the whole."""
    if len(value) <= limit:
        return value
    mark = f"... sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value[: limit - len(mark)] + mark


def dataset_digest(digest: str) -> str:
    """A content digest as MLflow keeps it: `dataset.digest = '...'` finds the runs that read the dataset."""
    return digest[:DIGEST_CHARACTERS]


def model_name(name: str) -> str:
    """A name as MLflow's registry takes it: neither / nor :, and nothing that a filter would have to escape."""
    return re.sub(r"[^\w.\- ]", "-", name)
