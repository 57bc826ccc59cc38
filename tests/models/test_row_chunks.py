import numpy as np
import pytest

from models import row_chunks
from models.row_chunks import blocks, shuffled


def cut(features, labels, *, rows):
    return [(features[start : start + rows], labels[start : start + rows]) for start in range(0, len(labels), rows)]


def test_rows_sorted_by_class_are_mixed(monkeypatch):
    monkeypatch.setattr(row_chunks, "SHUFFLE_BYTES", 4 * 200)  # 200 of the 1000 rows
    labels = np.repeat(np.arange(5), 200)
    chunks = cut(np.zeros((1000, 1), np.float32), labels, rows=30)
    mixed = np.concatenate([piece for _, piece in shuffled(chunks, generator=np.random.default_rng(0))])
    assert np.bincount(mixed).tolist() == [200] * 5
    assert np.mean([len(set(batch)) for batch in mixed[:960].reshape(-1, 32)]) >= 2


@pytest.mark.parametrize("rows", [7, 300])
def test_shuffled_rows_keep_their_labels_and_stay_within_memory(monkeypatch, rows):
    monkeypatch.setattr(row_chunks, "SHUFFLE_BYTES", 4 * 2 * 50)
    labels = np.arange(300)
    features = np.stack([labels, labels], axis=1).astype(np.float32)
    pieces = list(shuffled(cut(features, labels, rows=rows), generator=np.random.default_rng(0)))
    assert all(np.array_equal(piece[:, 0], names) and len(names) <= 50 for piece, names in pieces)
    assert sorted(np.concatenate([names for _, names in pieces])) == list(range(300))


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_blocks_are_full_but_the_last(rows):
    labels = np.arange(23)
    pieces = list(blocks(cut(labels[:, None], labels, rows=rows), rows=5))
    assert [len(names) for _, names in pieces] == [5, 5, 5, 5, 3]
    assert np.array_equal(np.concatenate([names for _, names in pieces]), labels)
    assert np.array_equal(np.concatenate([piece for piece, _ in pieces])[:, 0], labels)


def test_a_set_smaller_than_the_buffer_is_shuffled_whole():
    rows = np.arange(1000)
    chunks = cut(np.zeros((1000, 1), np.float32), rows, rows=30)
    mixed = np.concatenate([piece for _, piece in shuffled(chunks, generator=np.random.default_rng(0))])
    assert sorted(mixed) == list(rows)
    assert abs(np.corrcoef(rows, mixed)[0, 1]) < 0.1
