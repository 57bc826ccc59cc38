"""Encoders: weights and heads come back as they were, and nothing is unpickled."""

import io
import pickle
import sys
from pathlib import Path

import pytest
import torch

from storage.artifact import Marker, content_digest
from storage.encoders import WEIGHTS, Encoder, space_id, write_encoder
from storage.errors import CorruptFile
from storage.folder import Folder

DESCRIPTION = {"architecture": {"name": "alexnet_bn"}, "normalisation": {"mean": [0.5], "std": [0.25]}}
BACKBONE = {
    "conv1.weight": torch.arange(12.0).reshape(3, 4),
    "bn.num_batches_tracked": torch.tensor(3),
    # A name that also is the beginning of a head's.
    "heads.projection.weight": torch.ones(1),
}
HEADS = {"projection": {"fc.weight": torch.ones(2, 2)}, "projection2": {"fc.weight": torch.zeros(1)}}


class Touch:
    """What an attacker would put into a pickle: unpickling it writes a file."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self):
        return Path.touch, (self._place,)


@pytest.fixture
def folder(tmp_path) -> Folder:
    kept = Folder(tmp_path / "kept")
    write_encoder(kept, backbone=BACKBONE, heads=HEADS, description=DESCRIPTION)
    return kept


def encoder_in(folder: Folder) -> Encoder:
    files = [folder.record(name) for name in folder.files()]
    marker = Marker(
        kind="Encoder",
        stage="train_pretext",
        stage_version="1",
        key="0" * 64,
        digest=content_digest(files),
        data=folder.path.name,
        config={},
        inputs={},
        external={},
        files=files,
        environment={},
        seconds=0.0,
        created="2026-01-01T00:00:00+00:00",
    )
    return Encoder(folder, marker)


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def test_backbone_heads_and_description_come_back(folder):
    encoder = encoder_in(folder)
    assert encoder.description() == DESCRIPTION
    assert equal(encoder.backbone_weights(), BACKBONE)
    assert equal(encoder.head_weights("projection"), HEADS["projection"])
    assert equal(encoder.head_weights("projection2"), HEADS["projection2"])
    assert encoder.head_weights("classifier") == {}


def test_weights_that_are_views_are_kept_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    folder = Folder(tmp_path)
    transposed = {
        "w": base.T,
        "channels_last": torch.arange(16.0).reshape(1, 2, 2, 4).contiguous(memory_format=torch.channels_last),
    }
    write_encoder(folder, backbone=transposed, heads={}, description=DESCRIPTION)
    assert equal(encoder_in(folder).backbone_weights(), transposed)


def test_gradients_and_parameters_do_not_come_along(tmp_path):
    folder = Folder(tmp_path)
    parameter = torch.nn.Parameter(torch.ones(3))
    write_encoder(folder, backbone={"w": parameter}, heads={}, description=DESCRIPTION)
    assert not encoder_in(folder).backbone_weights()["w"].requires_grad


def test_equal_encoders_are_equal_bytes(folder, tmp_path):
    other = Folder(tmp_path / "other")
    write_encoder(
        other,
        backbone=dict(reversed(BACKBONE.items())),
        heads=HEADS,
        description=dict(reversed(DESCRIPTION.items())),
    )
    assert encoder_in(folder).digest == encoder_in(other).digest


def test_it_opens_without_unpickling(folder, monkeypatch):
    def refuse(*_args, **_settings):
        pytest.fail("something was unpickled")

    encoder = encoder_in(folder)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert equal(encoder.backbone_weights(), BACKBONE) and encoder.description() == DESCRIPTION


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_in_place_of_weights_is_refused_and_not_run(folder, tmp_path, kind):
    payload = {"backbone.conv1.weight": Touch(tmp_path / "run")}
    buffer = io.BytesIO()
    torch.save(payload, buffer) if kind == "torch" else buffer.write(pickle.dumps(payload))
    folder.write(WEIGHTS, buffer.getvalue())
    with pytest.raises(CorruptFile, match=r"weights\.safetensors must be an intact safetensors file"):
        encoder_in(folder).backbone_weights()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [0, 7, 60, -1])
def test_weights_cut_short_are_named(folder, size):
    folder.write(WEIGHTS, folder.read(WEIGHTS)[:size])
    with pytest.raises(CorruptFile, match=rf"{folder.path}/weights\.safetensors must be an intact"):
        encoder_in(folder).backbone_weights()


def test_a_space_is_its_encoder_layer_pooling_and_view(folder, tmp_path):
    other = Folder(tmp_path / "other")
    write_encoder(other, backbone={"w": torch.zeros(1)}, heads={}, description=DESCRIPTION)
    encoder = encoder_in(folder)
    usual = {"layer": "conv4", "pooling": {"kind": "average", "grid": 2}, "view": {"size": 32}}
    changes = [{"layer": "conv5"}, {"pooling": {"kind": "average", "grid": 1}}, {"view": {"size": 64}}]
    spaces = [space_id(encoder, **usual | change) for change in [{}, *changes]]
    spaces.append(space_id(encoder_in(other), **usual))
    assert len(set(spaces)) == len(spaces)
    assert spaces[0] == space_id(encoder_in(folder), **usual)


def test_storage_needs_no_torch_until_weights_are_read():
    import subprocess

    program = "import sys, storage.encoders, storage.checkpoints, tasks.stage; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == 0
