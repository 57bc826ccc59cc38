"""List the images of a dataset: who they are by content, what they are labelled, and which cannot be read."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import Protocol

import numpy as np
from pydantic import Field, PositiveInt

from storage.dataset_index import BOX, UNLABELLED, DatasetIndex
from storage.datasets.source import DatasetConfig, Fraction, open_source
from storage.entries import Entry, Target
from storage.folder import Folder
from storage.images import Probe, image_hash, probe, probe_all
from storage.index_writer import write_dataset_index
from storage.stat_cache import StatCache
from storage.tables import read_table, table_bytes, text_column
from tasks.runtime import Runtime
from tasks.stage import Work, stage

log = logging.getLogger(__name__)

# Images sent to a worker at a time: enough that sending costs little beside decoding.
SENT_ROWS = 32
REASONS_SHOWN = 3
# Names are kept for each class up to the highest.
MAX_CLASSES = 1_000_000
TARGETS = "-targets"


class IndexDatasetConfig(DatasetConfig):
    """Which dataset, and how much of it may be unreadable."""

    max_unreadable: float = Field(
        default=0.01, ge=0, le=1, description="Largest share of images that may fail to decode."
    )
    shard_rows: PositiveInt = Field(default=4096, description="Images between two commits.")

    @property
    def dataset(self) -> DatasetConfig:
        """The dataset alone."""
        return DatasetConfig(**{name: getattr(self, name) for name in DatasetConfig.model_fields})


class Prober(Protocol):
    """Decodes images, in this process or in others, and gives what is known of each, in order."""

    def __call__(self, images: Iterable[bytes]) -> Iterator[Probe]: ...


def source_digests(config: IndexDatasetConfig, runtime: Runtime) -> dict[str, str]:
    """The digest of the dataset's bytes as they are now; reads only files that changed since last time."""
    source = open_source(config.dataset, place=runtime.place(config.name))
    return {"source": source.fingerprint(_stat_cache(runtime))}


@stage(produces=DatasetIndex, version=1, ingredients=source_digests)
def index_dataset(config: IndexDatasetConfig, work: Work) -> None:
    """Decode every image once; what decodes becomes a row.

    Raises:
        ValueError: more than `max_unreadable` of the images cannot be decoded, or the dataset changed.
    """
    source = open_source(config.dataset, place=work.runtime.place(config.name))
    before = source.fingerprint(_stat_cache(work.runtime))
    total = len(source)
    shards = [f"images-{number:06d}" for number in range(-(-total // config.shard_rows))]
    # Shards are made in order, so what is missing is the end.
    done = next((number for number, shard in enumerate(shards) if shard not in work.ledger), len(shards))
    entries = source.entries(start=done * config.shard_rows)
    with _prober(work.runtime.workers) as prober:
        for number in range(done, len(shards)):
            numbered = enumerate(islice(entries, config.shard_rows), start=number * config.shard_rows)
            inspected = _inspect(_chosen(numbered, config.fraction), prober=prober)
            for suffix, columns in zip(("", TARGETS), inspected, strict=True):
                work.state.write(f"{shards[number]}{suffix}.parquet", table_bytes(columns))
            work.progress(min(total, (number + 1) * config.shard_rows), total, unit="images")
            work.commit(shards[number], records=[])
    merged = _merge(work.state, shards)
    targets = _merge(work.state, [f"{shard}{TARGETS}" for shard in shards]) if source.annotated else None
    _require_readable(config, merged)
    # The key holds what the dataset was before; rows of something else must not go under it.
    if (
        open_source(config.dataset, place=work.runtime.place(config.name)).fingerprint(_stat_cache(work.runtime))
        != before
    ):
        raise ValueError(
            f"dataset {config.name!r} must not change while it is indexed, and it did. Run the command again"
        )
    write_dataset_index(work.data, source=config.dataset, classes=source.classes, entries=merged, targets=targets)


def _stat_cache(runtime: Runtime) -> StatCache:
    return StatCache(Folder(runtime.cache) / "stat")


def _chosen(numbered: Iterable[tuple[int, Entry]], fraction: Fraction | None) -> Iterator[tuple[int, Entry]]:
    """The entries that are in the fraction, each with its number."""
    return ((number, entry) for number, entry in numbered if fraction is None or fraction.holds(image_hash(entry.data)))


def _inspect(
    entries: Iterable[tuple[int, Entry]], *, prober: Prober
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The columns that `write_dataset_index` wants of these entries, and of their targets."""
    seen: list[tuple[int, Entry]] = []
    probes = list(prober(_passing(entries, seen)))
    labels = [UNLABELLED if entry.label is None else entry.label for _, entry in seen]
    columns = {
        "number": np.array([number for number, _ in seen], dtype=np.int64),
        "name": text_column(entry.name for _, entry in seen),
        "split": text_column(entry.split or "" for _, entry in seen),
        "label": np.array(labels, dtype=np.int32),
        "image": text_column(probe.image for probe in probes),
        "width": np.array([probe.width for probe in probes], dtype=np.int64),
        "height": np.array([probe.height for probe in probes], dtype=np.int64),
        "size": np.array([probe.size for probe in probes], dtype=np.int64),
        "reason": text_column(probe.reason for probe in probes),
        "shows": text_column(_shows(entry) for _, entry in seen),
        "mask": text_column(entry.mask.name if entry.mask else "" for _, entry in seen),
        "mask_image": text_column(image_hash(entry.mask.data) if entry.mask else "" for _, entry in seen),
    }
    return columns, _target_columns([(number, target) for number, entry in seen for target in entry.targets])


def _shows(entry: Entry) -> str:
    """A name for the targets and the mask of an entry, whatever their order; empty for none."""
    parts = sorted(map(repr, entry.targets)) + ([image_hash(entry.mask.data)] if entry.mask else [])
    return image_hash("\n".join(parts).encode()) if parts else ""


def _passing(entries: Iterable[tuple[int, Entry]], seen: list[tuple[int, Entry]]) -> Iterator[bytes]:
    """The images of these entries; what is kept of them in `seen` is all but the image."""
    for number, entry in entries:
        highest = max([UNLABELLED if entry.label is None else entry.label, *(one.label for one in entry.targets)])
        if highest >= MAX_CLASSES:
            raise ValueError(
                f"labels must be numbers of classes, below {MAX_CLASSES:,}; got {highest} at {entry.name}. Is it an "
                "id? Name another column or field in the options of the dataset, or read it without labels"
            )
        seen.append((number, entry._replace(data=b"")))
        yield entry.data


def _target_columns(targets: list[tuple[int, Target]]) -> dict[str, np.ndarray]:
    boxes = np.array([target.box or [np.nan] * 4 for _, target in targets], dtype=np.float64).reshape(-1, 4)
    outlines = np.empty(len(targets), dtype=object)
    outlines[:] = [target.outline for _, target in targets]
    return {
        "number": np.array([number for number, _ in targets], dtype=np.int64),
        "label": np.array([target.label for _, target in targets], dtype=np.int32),
        "difficult": np.array([target.difficult for _, target in targets], dtype=bool),
        **{edge: boxes[:, column] for column, edge in enumerate(BOX)},
        "outline": outlines,
    }


def _merge(state: Folder, shards: list[str]) -> dict[str, np.ndarray]:
    tables = [read_table(state, f"{shard}.parquet") for shard in shards]
    return {column: np.concatenate([table[column] for table in tables]) for column in tables[0]}


def _require_readable(config: IndexDatasetConfig, entries: dict[str, np.ndarray]) -> None:
    bad = np.flatnonzero(entries["reason"] != b"")
    total = len(entries["reason"])
    if not total:
        assert config.fraction is not None
        raise ValueError(
            f"the fraction of dataset {config.name!r} must hold at least one image; from {config.fraction.start} to "
            f"{config.fraction.stop} (seed {config.fraction.seed}) it holds none. Widen it"
        )
    if not len(bad):
        return
    shown = bad[:REASONS_SHOWN]
    pairs = zip(entries["name"][shown], entries["reason"][shown], strict=True)
    examples = b"; ".join(name + b": " + reason for name, reason in pairs).decode()
    found = f"{len(bad)} of {total} images of dataset {config.name!r} cannot be decoded ({examples})"
    if len(bad) == total or len(bad) > config.max_unreadable * total:
        raise ValueError(
            f"at most {config.max_unreadable:.2%} of the images may be unreadable; {found}. "
            "Repair or remove these files, or raise max_unreadable; graft data then lists them all"
        )
    log.warning("%s; they are left out", found)


@contextmanager
def _prober(workers: int) -> Iterator[Prober]:
    if workers == 0:
        yield lambda images: map(probe, images)
        return
    # Not forked: this process may already hold threads of torch.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield lambda images: _probe_ahead(pool, images, ahead=2 * workers)


def _probe_ahead(pool: ProcessPoolExecutor, images: Iterable[bytes], *, ahead: int) -> Iterator[Probe]:
    """Probe in the pool with at most `ahead` parcels under way, so that images do not pile up in memory."""
    images = iter(images)
    waiting: deque[Future[list[Probe]]] = deque()
    while parcel := list(islice(images, SENT_ROWS)):
        waiting.append(pool.submit(probe_all, parcel))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    for future in waiting:
        yield from future.result()
