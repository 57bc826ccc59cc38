import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from models.contrast import NoiseContrast
from models.heads import pooled
from models.pretext.pirl import PIRL
from models.views import Draw

SMALL = {"crop_size": 32, "output_dim": 8, "window": 63, "patch": 16, "patch_shift": 5, "num_negatives": 6}
PLAIN = {"jitter_probability": 0.0, "grey_probability": 0.0}


def test_patches_are_the_nine_cells_in_a_drawn_order(build):
    method = build(PIRL, **SMALL, **PLAIN, window_scale=(1.0, 1.0))
    numbers = 20 * torch.arange(9, dtype=torch.uint8).view(3, 3)
    cells = numbers.repeat_interleave(21, 0).repeat_interleave(21, 1).expand(3, -1, -1)
    orders, corners = set(), set()
    for row in range(60):
        patches = method.cut(cells, Draw(0, epoch=0, row_id=str(row)))
        assert patches.shape == (9, 3, 16, 16)
        if patches.flatten(1).float().std(1).max() > 0:
            continue  # the drawn ratio did not fit the image: cells are not where they were
        values = (patches[:, 0, 0, 0] // 20).tolist()
        assert sorted(values) == list(range(9))
        orders.add(tuple(values))
        corners.add(values.index(0))
    assert len(orders) > 10 and len(corners) > 4


def test_patches_shift_within_their_cell(build):
    method = build(PIRL, **SMALL, **PLAIN, window_scale=(1.0, 1.0))
    ramp = torch.arange(63, dtype=torch.uint8).view(-1, 1).expand(3, 63, 63)
    tops = [method.cut(ramp, Draw(0, epoch=0, row_id=str(row)))[:, 0, 0, 0] for row in range(60)]
    shifts = np.stack([np.sort(top.numpy()).astype(int) % 21 for top in tops if len(set(top.tolist())) > 3])
    assert shifts.max() >= 5 and shifts.min() == 0


def test_both_losses_are_against_the_bank(build, batch_of):
    method = build(PIRL, **SMALL, patch_weight=0.3).eval()
    batch = batch_of(method, (7, 2, 5))
    torch.manual_seed(3)
    output = method.loss(batch, 0.0)
    torch.manual_seed(3)
    negatives, positives = method.bank.draw(6), method.bank.rows[[7, 2, 5]]
    with torch.no_grad():
        image = F.normalize(method.head(pooled(method.backbone, method.normalise(batch.views["image"]))))
        joint = []
        for patches in batch.views["patches"]:
            parts = [method.patch_head(pooled(method.backbone, method.normalise(patch[None])))[0] for patch in patches]
            joint.append(method.joint_head(torch.cat(parts)))
        patched = F.normalize(torch.stack(joint))
    of_image = NoiseContrast(temperature=0.07)(image, positives, negatives, num_rows=12)
    of_patches = NoiseContrast(temperature=0.07)(patched, positives, negatives, num_rows=12)
    expected = 0.3 * of_patches + 0.7 * of_image
    torch.testing.assert_close(output.objectives["main"].detach(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_both_heads_and_never_the_bank(build, batch_of):
    method = build(PIRL, **SMALL)
    method.loss(batch_of(method), 0.0).objectives["main"].backward()
    for head in (method.head, method.patch_head, method.joint_head):
        assert head[0].weight.grad.abs().max() > 0
    assert method.bank.rows.grad is None and not method.bank.rows.requires_grad


def test_only_images_are_remembered(build, batch_of):
    method = build(PIRL, **SMALL, bank_momentum=0.0).eval()
    batch = batch_of(method, (7, 2, 5))
    method.loss(batch, 0.0)
    method.after_step(0.0)
    with torch.no_grad():
        image = F.normalize(method.head(pooled(method.backbone, method.normalise(batch.views["image"]))))
    torch.testing.assert_close(method.bank.rows[[7, 2, 5]], image)


@pytest.mark.parametrize("wrong", [{"window": 62}, {"patch": 17}, {"patch_shift": 6}])
def test_geometry_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValidationError, match="must be a multiple of 3, and patch"):
        PIRL.Config(**{**SMALL, **wrong})
