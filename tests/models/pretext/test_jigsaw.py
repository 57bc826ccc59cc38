import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from models.backbones import Architecture, build_backbone
from models.pretext.base import Batch
from models.pretext.jigsaw import Jigsaw, pool_tile
from models.views import Draw

SMALL = {"resize": 63, "window": 63, "tile": 16, "jitter": 5, "num_permutations": 10}
SMALL |= {"tile_width": 8, "joint_width": 16, "grey_probability": 0.0}


def build(architecture=None, **settings):
    torch.manual_seed(0)
    small = architecture or Architecture(name="alexnet_bn", stem="small", width=0.125)
    return Jigsaw(Jigsaw.Config(**{**SMALL, **settings}), build_backbone(small), num_rows=4)


def draw(row="a"):
    return Draw(0, epoch=0, row_id=row)


def cells(cell=21):
    """An image whose nine cells are flat, each of its raster number."""
    numbers = torch.arange(9, dtype=torch.uint8).view(3, 3)
    return numbers.repeat_interleave(cell, 0).repeat_interleave(cell, 1).expand(3, -1, -1)


def ramps():
    """An image whose channels tell the row, the column and the row of each pixel."""
    rows = torch.arange(63, dtype=torch.uint8).view(-1, 1).expand(63, 63)
    return torch.stack([rows, rows.T, rows])


def noise(size=63):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8))


def test_slot_s_holds_the_cell_that_the_labels_permutation_names():
    method = build()
    for row in range(20):
        views = method.views(cells(), draw(str(row)))
        permutation = method.permutations[views["label"]]
        assert views["tiles"].shape == (9, 3, 16, 16)
        assert views["tiles"].flatten(1).float().std(1).max() == 0  # no tile leaves its cell
        assert np.array_equal(views["tiles"][:, 0, 0, 0].numpy(), permutation)


def test_inverse_permutation_restores_raster_order():
    method = build()
    views = method.views(cells(), draw())
    inverse = np.argsort(method.permutations[views["label"]])
    assert views["tiles"][inverse][:, 0, 0, 0].tolist() == list(range(9))


def test_every_label_is_drawn():
    method = build()
    labels = [method.views(cells(), draw(str(row)))["label"].item() for row in range(300)]
    assert sorted(set(labels)) == list(range(10))
    assert min(np.bincount(labels)) > 10


def test_tiles_and_their_channels_move_by_the_jitter():
    method = build()
    corner = torch.arange(9).div(3, rounding_mode="floor") * 21  # of each cell's rows
    first = torch.stack([method.cut(ramps(), draw(str(row)))[:, :, 0, 0].int() for row in range(300)])
    moved = first[..., 0] - corner
    assert (moved.min(), moved.max()) == (0, 5)
    shift = first[..., 2] - first[..., 0]  # both tell rows, so they differ by the channels' own shifts
    assert (shift.min(), shift.max()) == (-2, 2)
    still = build(channel_shift=0).cut(ramps(), draw())[:, :, 0, 0]
    assert torch.equal(still[:, 0], still[:, 2])


def test_grey_tiles_have_three_equal_channels():
    method = build(grey_probability=0.3, channel_shift=0)
    grey = [len(torch.unique(method.cut(noise(), draw(str(row)))[0], dim=0)) == 1 for row in range(600)]
    assert sum(grey) == pytest.approx(180, abs=40)


@pytest.mark.parametrize("tile_scale", [1.0, 50.0])
def test_each_tile_is_normalised_by_itself_over_all_channels(tile_scale):
    method = build(tile_scale=tile_scale)
    tiles = (noise(48).view(3, 3, 16, 48).transpose(0, 1) * torch.tensor([0.1, 0.5, 1]).view(3, 1, 1, 1)).byte()
    values = method.prepare(tiles).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    pixels = tiles.numpy().reshape(3, -1).astype(np.float64)
    expected = tile_scale * (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, keepdims=True)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-4)
    torch.testing.assert_close(values.var(1, correction=0), torch.full((3,), tile_scale**2))


def test_a_flat_tile_becomes_zero():
    assert build().prepare(torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)).abs().max() == 0


def test_without_tile_normalisation_the_mean_and_deviation_of_the_config_count():
    method = build(tile_normalisation=False)
    tiles = noise(16)[None]
    assert torch.equal(method.prepare(tiles), method.normalise(tiles))


def test_alexnet_tile_of_64_gives_2304_values_and_one_output_for_each_permutation():
    settings = {"resize": 256, "window": 255, "tile": 64, "jitter": 21, "num_permutations": 12}
    method = build(Architecture(name="caffenet"), **settings)
    assert method.tile_head[1].in_features == 2304
    views = method.views(noise(260), draw())
    assert method.backbone(torch.zeros(1, 3, 64, 64))["conv5"].shape == (1, 256, 6, 6)
    assert method.logits(views["tiles"][None]).shape == (1, 12)


def test_pooling_rounds_up_as_caffe_where_that_gives_the_grid():
    maps = torch.randn(2, 4, 6, 6)
    assert torch.equal(pool_tile(maps, grid=3), F.max_pool2d(maps, 3, stride=2, ceil_mode=True))
    assert torch.equal(pool_tile(maps, grid=2), F.adaptive_max_pool2d(maps, 2))
    assert pool_tile(maps[..., :2, :2], grid=1).shape == (2, 4, 1, 1)


def test_loss_sees_the_slots_in_order():
    method = build().eval()
    views = [method.views(noise(), draw(str(row))) for row in range(3)]
    tiles, labels = (torch.stack([view[name] for view in views]) for name in ("tiles", "label"))
    expected = []
    for image_tiles, label in zip(tiles, labels, strict=True):
        parts = []
        for tile in image_tiles:
            maps = method.backbone(method.prepare(tile[None]))["conv5"]
            parts.append(method.tile_head(pool_tile(maps, grid=3))[0])
        expected.append(F.cross_entropy(method.joint_head(torch.cat(parts)), label))
    loss = method.loss(Batch({"tiles": tiles, "label": labels}, torch.arange(3)), 0.0).objectives["main"]
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"window": 62}, {"resize": 60}, {"tile": 17}, {"jitter": 1}, {"channel_shift": 6}])
def test_geometry_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValidationError, match="must (be a multiple of 3|fit a cell)"):
        Jigsaw.Config(**{**SMALL, **wrong})
