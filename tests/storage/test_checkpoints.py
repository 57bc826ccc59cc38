"""Checkpoints: replaced whole, read back exactly, and nothing that they hold is run."""

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from storage.checkpoints import CHECKPOINT, load_checkpoint, save_checkpoint
from storage.errors import CorruptFile
from storage.folder import Folder


class Touch:
    """What an attacker would put into a pickle: unpickling it writes a file."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self):
        return Path.touch, (self._place,)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "state")


def state() -> dict:
    return {
        "weights": {"conv.weight": torch.arange(24.0).reshape(2, 3, 4), "steps": torch.tensor(7)},
        "half": torch.linspace(0, 1, 5, dtype=torch.bfloat16),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "inertia": [1.5, float("inf")],
        "name": "rotation",
        "number": 12,
        "nothing": None,
    }


def same(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    return left == right


def test_there_is_none_at_the_beginning(folder):
    assert load_checkpoint(folder) is None
    assert list(folder.files()) == []


def test_what_is_loaded_is_what_was_saved(folder):
    save_checkpoint(folder, state())
    assert same(load_checkpoint(folder), state())
    assert list(folder.files()) == [CHECKPOINT]


def test_the_last_one_counts(folder):
    for step in range(3):
        save_checkpoint(folder, {"step": step})
    assert load_checkpoint(folder) == {"step": 2} and list(folder.files()) == [CHECKPOINT]


def test_an_interrupted_save_keeps_the_one_before(folder, monkeypatch):
    save_checkpoint(folder, {"step": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, {"step": 2})
    assert load_checkpoint(folder) == {"step": 1}


def test_a_malicious_checkpoint_is_refused_and_not_run(folder, tmp_path):
    buffer = io.BytesIO()
    torch.save({"step": Touch(tmp_path / "run")}, buffer)
    folder.write(CHECKPOINT, buffer.getvalue())
    with pytest.raises(CorruptFile, match=r"checkpoint\.pt must be a checkpoint.*begin this step anew"):
        load_checkpoint(folder)
    assert not (tmp_path / "run").exists()
    # The payload does what it says where nobody is careful.
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert (tmp_path / "run").exists()


def test_a_bare_pickle_is_refused_and_not_run(folder, tmp_path):
    folder.write(CHECKPOINT, pickle.dumps(Touch(tmp_path / "run")))
    with pytest.raises(CorruptFile, match="must be a checkpoint"):
        load_checkpoint(folder)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_checkpoint_is_refused(folder, data):
    folder.write(CHECKPOINT, data)
    with pytest.raises(CorruptFile, match=rf"{folder.path}/checkpoint\.pt must be a checkpoint"):
        load_checkpoint(folder)


def test_a_checkpoint_cut_short_is_refused(folder):
    save_checkpoint(folder, state())
    whole = folder.read(CHECKPOINT)
    for size in range(0, len(whole), 97):
        folder.write(CHECKPOINT, whole[:size])
        with pytest.raises(CorruptFile, match="must be a checkpoint"):
            load_checkpoint(folder)


def test_a_changed_byte_never_changes_what_is_loaded(folder):
    """torch by itself returns changed weights without a word."""
    save_checkpoint(folder, state())
    whole = folder.read(CHECKPOINT)
    refused = 0
    for place in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (folder.path / CHECKPOINT).write_bytes(damaged)
        try:
            assert same(load_checkpoint(folder), state()), place
        except CorruptFile:
            refused += 1
    assert refused > 50


def test_a_changed_weight_is_refused(folder):
    save_checkpoint(folder, {"weights": torch.full((1000,), 1.25)})
    whole = folder.read(CHECKPOINT)
    with zipfile.ZipFile(io.BytesIO(whole)) as parts:
        (name,) = [part for part in parts.namelist() if part.endswith("/data/0")]
        place = whole.index(parts.read(name)) + 2000
    (folder.path / CHECKPOINT).write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    with pytest.raises(CorruptFile, match=r"data/0 fails its checksum.*begin this step anew"):
        load_checkpoint(folder)
