import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.backbones import Architecture, build_backbone
from models.pretext.base import Batch
from models.pretext.rotation import Rotation
from models.views import IMAGENET_MEAN, IMAGENET_STD, Draw

CONFIG = Rotation.Config(crop_size=32, head="linear")


@pytest.fixture
def method():
    torch.manual_seed(0)
    backbone = build_backbone(Architecture(name="alexnet_bn", stem="small", width=0.125))
    return Rotation(CONFIG, backbone, num_rows=4)


def image(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 40, 48), dtype=np.uint8))


def batch_of(method, count=4):
    turns = [method.views(image(row), Draw(0, epoch=0, row_id=str(row)))["turns"] for row in range(count)]
    return Batch({"turns": torch.stack(turns)}, torch.arange(count))


def test_view_k_is_k_quarter_turns_to_the_left(method):
    turns = method.views(image(), Draw(0, epoch=0, row_id="a"))["turns"]
    assert turns.shape == (4, 3, 32, 32)
    for k, turned in enumerate(turns):
        for channel in range(3):
            assert np.array_equal(turned[channel].numpy(), np.rot90(turns[0, channel].numpy(), k))


def test_a_quarter_turn_moves_the_right_edge_to_the_top(method):
    right = torch.zeros(3, 32, 32, dtype=torch.uint8)
    right[..., 24:] = 255
    whole = Rotation.Config(crop_size=32, crop_scale=(1.0, 1.0), head="linear")
    views = Rotation(whole, method.backbone, num_rows=4).views
    rows = (views(right, Draw(0, epoch=0, row_id=str(row)))["turns"] for row in range(99))
    turns = next(turns for turns in rows if turns[0, 0, 16, 30] == 255)  # one that was not mirrored
    assert turns[1, 0, 1, 16] == 255 and turns[1, 0, 30, 16] == 0


def test_four_quarter_turns_restore_the_image(method):
    turns = method.views(image(), Draw(0, epoch=0, row_id="a"))["turns"]
    assert torch.equal(torch.rot90(turns[3], 1, (-2, -1)), turns[0])


def test_labels_are_balanced_so_a_constant_classifier_scores_a_quarter(method):
    with torch.no_grad():
        method.head[-1].weight.zero_()
        method.head[-1].bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
    assert method.loss(batch_of(method), 0.0).metrics["accuracy"] == 0.25


def test_loss_is_the_cross_entropy_of_the_turn(method):
    method.eval()
    batch = batch_of(method)
    expected = []
    for turns in batch.views["turns"]:
        for k in range(4):
            pixels = (turns[k] / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(
                3, 1, 1
            )
            logits = method.head(method.backbone(pixels[None])["conv5"])[0]
            expected.append(-F.log_softmax(logits, dim=0)[k])
    torch.testing.assert_close(
        method.loss(batch, 0.0).objectives["main"], torch.stack(expected).mean(), atol=1e-5, rtol=1e-5
    )


def test_classifier_is_kept_with_the_encoder(method):
    assert method.heads() == {"classifier": method.head}
