"""From the entries of a source to the files of a DatasetIndex: row ids, order, repeats, quarantine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from storage.dataset_index import BOX, INDEX, LOCATIONS, QUARANTINE, ROWS, SOURCE, TARGETS, UNLABELLED
from storage.datasets.source import DatasetConfig, load_format
from storage.folder import Folder
from storage.image_cache import plan_pieces
from storage.tables import table_bytes


def write_dataset_index(
    folder: Folder,
    *,
    source: DatasetConfig,
    classes: tuple[str, ...] | None,
    entries: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the files of a DatasetIndex.

    Args:
        folder: the artifact's data folder.
        source: the dataset that was indexed.
        classes: the class names of the source, if it names them.
        entries: columns of all entries in the order of the source, (E,) each: `number` (of the entry, increasing)
            int64, `name`, `split` (empty for none), `image` (the hash of the encoded bytes) and `reason` (empty for
            readable) of dtype S, `label` int32 (UNLABELLED for none), `width`, `height` and `size` int64; of dtype S
            also `shows` (a hash of the targets and the mask), `mask` and `mask_image` (its file and its hash), all
            empty for none.
        targets: of an annotated source, columns of all targets, (T,) each: `number` (of the entry) int64, `label`
            int32, `difficult` bool, `left`, `top`, `right` and `bottom` float64, `outline` of bytes objects.
    """
    readable = entries["reason"] == b""
    order = np.flatnonzero(readable)
    occurrence = _count_occurrences(entries, order=order)
    row_id = np.strings.add(np.strings.add(entries["image"][order], b"-"), occurrence.astype(bytes))
    sort = np.argsort(row_id, kind="stable")

    own = {name: entries[name][order[sort]] for name in ("label", "width", "height", "size")}
    locations = _locations(source, entries, order=order[sort])
    if targets is not None:
        # The content of a mask counts, as that of an image does; its name is a place.
        own["mask"], locations["mask"] = (entries[name][order[sort]] for name in ("mask_image", "mask"))
        folder.write(TARGETS, table_bytes(_targets(targets, number=entries["number"][order[sort]])))
    folder.write(ROWS, table_bytes({"row_id": row_id[sort], **own}))
    folder.write(LOCATIONS, table_bytes(locations))
    quarantined = {column: entries[column][~readable] for column in ("name", "reason")}
    folder.write(QUARANTINE, table_bytes(quarantined))
    folder.write_json(SOURCE, source.model_dump(mode="json"))
    facts = {
        "classes": classes or _numbered(entries["label"][order] if targets is None else targets["label"]),
        "labelled": int((entries["label"][order] != UNLABELLED).sum()),
        "num_rows": len(order),
        "quarantined": int((~readable).sum()),
        "repeats": _count_repeats(entries, order=order, occurrence=occurrence),
    }
    folder.write_json(INDEX, facts)


def _numbered(labels: np.ndarray) -> tuple[str, ...] | None:
    """Names for classes that have none; None where there is no label."""
    return tuple(str(number) for number in range(int(labels.max(initial=UNLABELLED)) + 1)) or None


def _count_repeats(entries: Mapping[str, np.ndarray], *, order: np.ndarray, occurrence: np.ndarray) -> dict[str, int]:
    image = entries["image"][order]
    again = order[np.isin(image, image[occurrence > 0])]
    said = np.strings.add(entries["label"].astype(bytes), entries["shows"])
    return {
        "rows": int((occurrence > 0).sum()),
        "across_splits": _count_shared(entries["image"][again], entries["split"][again]),
        "under_two_labels": _count_shared(entries["image"][again], said[again]),
    }


def _count_occurrences(entries: Mapping[str, np.ndarray], *, order: np.ndarray) -> np.ndarray:
    """How many equal images come before each row, (R,) int64."""
    # By split and what it shows first: names must not decide which repeat is which.
    by_image = np.lexsort([entries[column][order] for column in ("name", "shows", "label", "split", "image")])
    occurrence = np.empty(len(order), dtype=np.int64)
    occurrence[by_image] = _count_runs(entries["image"][order[by_image]])
    return occurrence


def _locations(source: DatasetConfig, entries: Mapping[str, np.ndarray], *, order: np.ndarray) -> dict[str, np.ndarray]:
    locations = {"name": entries["name"][order]}
    if load_format(source.format).random_access:
        return locations
    number = entries["number"][order]
    piece, offset = plan_pieces(order=number, size=entries["size"][order])
    return {**locations, "order": number, "piece": piece, "offset": offset}


def _targets(targets: Mapping[str, np.ndarray], *, number: np.ndarray) -> dict[str, np.ndarray]:
    """The targets of the rows, in an order that the source's does not change.

    Args:
        number: of the entry of each row, in order of position, (N,) int64.
    """
    by_number = np.argsort(number)
    place = np.searchsorted(number, targets["number"], sorter=by_number)
    row = by_number[np.minimum(place, len(number) - 1)]
    # Those of images that are no rows are left out.
    kept = np.flatnonzero(number[row] == targets["number"])
    columns = {name: targets[name][kept] for name in ("label", "difficult", *BOX, "outline")}
    sort = np.lexsort([*(columns[edge] for edge in reversed(BOX)), columns["label"], row[kept]])
    return {"row": row[kept][sort], **{name: values[sort] for name, values in columns.items()}}


def _count_runs(values: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... along each run of equal values, (N,) int64."""
    position = np.arange(len(values))
    begins = np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]
    return position - np.maximum.accumulate(np.where(begins, position, 0))


def _count_shared(images: np.ndarray, groups: np.ndarray) -> int:
    """How many images lie in more than one group."""
    by_image = np.lexsort((groups, images))
    images, groups = images[by_image], groups[by_image]
    next_group = (images[1:] == images[:-1]) & (groups[1:] != groups[:-1])
    return len(np.unique(images[1:][next_group]))
