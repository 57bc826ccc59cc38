"""What an artifact is: data files, and a marker that says what they are and what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from storage.errors import CorruptFile
from storage.folder import FileRecord, Folder, canonical_json

MARKER_SCHEMA = 1


class InputRef(BaseModel):
    """An input as the marker remembers it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    key: str
    digest: str


class Marker(BaseModel):
    """The file written last: its presence says that the artifact is complete.

    Clock times and the environment are in it and not in the digest, so equal work has equal digests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = MARKER_SCHEMA
    kind: str
    stage: str
    stage_version: str
    key: str
    digest: str
    data: str
    config: dict[str, Any]
    inputs: dict[str, InputRef]
    external: dict[str, str]
    files: list[FileRecord]
    environment: dict[str, str]
    seconds: float
    created: str


def artifact_key(
    stage: str,
    *,
    version: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    external: Mapping[str, str] | None = None,
) -> str:
    """The name of what a stage makes of these ingredients: 64 hexadecimal digits.

    Args:
        stage: the stage's name.
        version: the stage's version (with the method's, where a config names one).
        config: every setting that changes the result, as JSON values.
        inputs: argument name -> content digest of the artifact given.
        external: name -> digest of what is read and is no artifact (source files, weight files).
    """
    ingredients = {
        "stage": stage,
        "version": version,
        "config": dict(config),
        "inputs": dict(inputs),
        "external": dict(external or {}),
    }
    return hashlib.sha256(canonical_json(ingredients)).hexdigest()


def content_digest(files: Iterable[FileRecord], *, undigested: frozenset[str] = frozenset()) -> str:
    """The digest of data files: (relative path, sha256) of each, in order of path."""
    rows = sorted([file.path, file.sha256] for file in files if file.path not in undigested)
    return hashlib.sha256(canonical_json(rows)).hexdigest()


class Artifact:
    """A complete result of a stage. Kinds subclass it with what can be read from them.

    Attributes:
        kind: the name of the kind.
        undigested: files that are kept and do not count as content (where a row lies, say).
        verified_whole: whether every byte is checked before a stage reads it. Not where the format has a checksum a
            chunk and holds too much to be read twice.
    """

    kind: ClassVar[str]
    undigested: ClassVar[frozenset[str]] = frozenset()
    verified_whole: ClassVar[bool] = True

    def __init__(self, folder: Folder, marker: Marker) -> None:
        if marker.kind != self.kind:
            raise ValueError(f"an artifact of kind {self.kind} is needed; {folder} holds {marker.kind}")
        self.folder = folder
        self.marker = marker

    def __repr__(self) -> str:
        return f"{self.kind}({self.key[:12]})"

    @property
    def key(self) -> str:
        return self.marker.key

    @property
    def digest(self) -> str:
        return self.marker.digest

    @property
    def uri(self) -> str:
        """Where the artifact lies: the folder of its marker."""
        return self.folder.place.parent.uri

    def ref(self) -> InputRef:
        return InputRef(kind=self.kind, key=self.key, digest=self.digest)

    def verify(self, *, deep: bool) -> None:
        """Hold the data files against the marker: present and of the right size; with `deep`, every byte.

        Raises:
            CorruptFile: names the first file that differs, and how.
        """
        sizes = self.folder.place.sizes()
        for file in self.marker.files:
            self._verify_file(file, size=sizes.get(file.path), deep=deep)

    def _verify_file(self, file: FileRecord, *, size: int | None, deep: bool) -> None:
        path = self.folder.at(file.path)
        remedy = f"recompute it with --force on the step that makes it (stage {self.marker.stage})"
        if size is None:
            raise CorruptFile(f"{self!r} must hold the file {path}, which is missing; {remedy}")
        if size != file.size:
            raise CorruptFile(f"{path} of {self!r} must have {file.size} bytes and has {size}; {remedy}")
        if deep and self.folder.record(file.path).sha256 != file.sha256:
            raise CorruptFile(f"{path} of {self!r} differs from what was written (sha256); {remedy}")
