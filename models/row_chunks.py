"""Streams of feature rows with their labels: checked, cut into blocks, shuffled.

Shapes: N rows of a chunk, D feature width.
"""

from collections.abc import Iterable, Iterator

import numpy as np

SHUFFLE_BYTES = 256 * 2**20  # rows held back so that batches mix the chunks
OUTPUT_ROWS = 4096  # rows of a piece when the held rows go out

Chunk = tuple[np.ndarray, np.ndarray]  # features (N, D) floating point, labels (N,) integer


def finite_rows(features_ND: np.ndarray) -> np.ndarray:
    """Give the features as contiguous float32; ValueError if one is NaN or infinite."""
    features_ND = np.ascontiguousarray(features_ND, dtype=np.float32)
    if not np.isfinite(features_ND).all():
        raise ValueError("features must be finite, NaN or infinity was given; extract them again in float32")
    return features_ND


def checked(chunks: Iterable[Chunk], *, num_classes: int) -> Iterator[Chunk]:
    """Pass on the chunks that have rows, as float32 and int64.

    Raises:
        ValueError: labels do not fit the features or the number of classes, or a feature is not finite.
    """
    for features_ND, labels_N in chunks:
        if len(labels_N) != len(features_ND):
            raise ValueError(
                f"every feature row must have a label, {len(features_ND)} rows and {len(labels_N)} labels "
                "were given; read both by the same rows"
            )
        if len(labels_N) == 0:
            continue
        if labels_N.min() < 0 or labels_N.max() >= num_classes:
            raise ValueError(
                f"labels must be 0 to {num_classes - 1}, {labels_N.min()} to {labels_N.max()} were given; "
                "leave out rows without a label, or give the right number of classes"
            )
        yield finite_rows(features_ND), labels_N.astype(np.int64)


def blocks(chunks: Iterable[Chunk], *, rows: int) -> Iterator[Chunk]:
    """Cut chunks of any size into blocks of `rows` rows; the last may be smaller."""
    held: list[Chunk] = []
    count = 0
    for features_ND, labels_N in chunks:
        start = 0
        while start < len(labels_N):
            piece = slice(start, start + rows - count)
            held.append((features_ND[piece], labels_N[piece]))
            start += len(held[-1][1])
            count += len(held[-1][1])
            if count == rows:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(pieces: list[Chunk]) -> Chunk:
    features, labels = zip(*pieces, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def shuffled(chunks: Iterable[Chunk], *, generator: np.random.Generator) -> Iterator[Chunk]:
    """Mix rows across chunks: each arriving row takes the place of a random held one, which goes out."""
    held_features, held_labels = np.empty((0, 0), np.float32), np.empty(0, np.int64)
    filled = 0
    for features_ND, labels_N in chunks:
        if len(held_labels) == 0:
            width = features_ND.shape[1]
            capacity = max(1, SHUFFLE_BYTES // (4 * width))
            # Memory of np.empty is taken page by page, so a small set takes little.
            held_features, held_labels = np.empty((capacity, width), np.float32), np.empty(capacity, np.int64)
        capacity = len(held_labels)
        taken = min(capacity - filled, len(labels_N))
        held_features[filled : filled + taken] = features_ND[:taken]
        held_labels[filled : filled + taken] = labels_N[:taken]
        filled += taken
        for start in range(taken, len(labels_N), capacity):
            piece = slice(start, start + capacity)
            slots = generator.choice(capacity, size=len(labels_N[piece]), replace=False)
            yield held_features[slots], held_labels[slots]
            held_features[slots], held_labels[slots] = features_ND[piece], labels_N[piece]
    order = generator.permutation(filled)
    for start in range(0, filled, OUTPUT_ROWS):
        slots = order[start : start + OUTPUT_ROWS]
        yield held_features[slots], held_labels[slots]
