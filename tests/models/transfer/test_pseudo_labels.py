import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.backbones import Architecture, build_backbone
from models.pretext.base import Batch
from models.transfer.pseudo_labels import PseudoLabels
from models.views import Draw


def build(**settings):
    torch.manual_seed(0)
    backbone = build_backbone(Architecture(name="alexnet_bn", stem="small", width=0.125))
    config = PseudoLabels.Config(crop_size=32, **{"head": "linear", **settings})
    return PseudoLabels(config, backbone, num_rows=6, num_labels=5)


def batch_of(labels):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8))
    return Batch({"image": images}, torch.arange(len(labels)), torch.tensor(labels))


def test_loss_is_the_cross_entropy_of_the_labels():
    method, batch = build().eval(), batch_of([0, 4, 2])
    logits = method.logits(method.normalise(batch.views["image"]))
    output = method.loss(batch, 0.0)
    torch.testing.assert_close(output.objectives["main"], F.cross_entropy(logits, batch.labels))
    assert output.metrics["accuracy"] == (logits.argmax(1) == batch.labels).float().mean()


def test_unlabelled_rows_teach_nothing():
    method = build().eval()
    some, batch = method.loss(batch_of([0, -1, 2]), 0.0), batch_of([0, 4, 2])
    rows = torch.tensor([0, 2])
    left = method.loss(Batch({"image": batch.views["image"][rows]}, rows, batch.labels[rows]), 0.0)
    torch.testing.assert_close(some.objectives["main"], left.objectives["main"])
    none = method.loss(batch_of([-1, -1, -1]), 0.0).objectives["main"]
    none.backward()
    assert none == 0 and method.head[-1].weight.grad.abs().max() == 0


def test_a_batch_without_labels_is_refused():
    with pytest.raises(ValueError, match="needs a label for each row"):
        build().loss(Batch({"image": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, torch.arange(1)), 0.0)


def test_head_has_one_output_for_each_label():
    method = build()
    assert method.heads()["classifier"][-1].out_features == 5


def test_grey_and_jitter_are_off_unless_asked_for():
    picture = torch.zeros(3, 40, 40, dtype=torch.uint8)
    picture[0] = 200  # a flat red: crop and mirror leave it as it is

    def view(method):
        return method.views(picture, Draw(0, epoch=0, row_id="a"))["image"]

    assert torch.equal(view(build()), picture[:, :32, :32])
    grey = view(build(grey_probability=1.0))
    assert torch.equal(grey[0], grey[1]) and grey[0, 0, 0] == 60  # 0.299 of 200
    assert not torch.equal(view(build(jitter=(0.4, 0.4, 0.4, 0.2))), picture[:, :32, :32])
