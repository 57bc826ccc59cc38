import pytest
import torch
from torch import nn

from models.backbones import Architecture, build_backbone
from models.heads import build_classifier


def classifier(name, **options):
    torch.manual_seed(0)
    return build_classifier(build_backbone(Architecture(name=name, width=options.pop("width", 1.0))), **options)


def layer_sizes(head):
    return [module.weight.shape for module in head if isinstance(module, nn.Linear)]


def test_linear_head_is_one_layer_on_the_mean_of_the_map():
    head = classifier("resnet18", num_classes=7, kind="linear")
    maps = torch.rand(4, 512, 3, 5)
    last = head[-1]
    torch.testing.assert_close(head(maps), maps.mean((2, 3)) @ last.weight.T + last.bias)
    assert layer_sizes(head) == [(7, 512)]


@pytest.mark.parametrize(
    ("name", "width", "grid", "sizes"),
    [
        ("caffenet", 1.0, None, [(4096, 256 * 6 * 6), (4096, 4096), (10, 4096)]),
        ("alexnet", 0.25, 3, [(1024, 64 * 3 * 3), (1024, 1024), (10, 1024)]),
        ("vgg16", 0.25, None, [(1024, 128 * 7 * 7), (1024, 1024), (10, 1024)]),
    ],
)
def test_fc_head_has_the_published_layers_times_the_width(name, width, grid, sizes):
    head = classifier(name, width=width, num_classes=10, kind="fc", grid=grid)
    assert layer_sizes(head) == sizes
    assert head(torch.rand(2, sizes[0][1] // head[0].output_size ** 2, 13, 13)).shape == (2, 10)


def test_fc_head_pools_the_maxima_and_drops_only_in_training():
    head = classifier("alexnet", width=0.125, num_classes=3, kind="fc", grid=2)
    maps = torch.rand(2, 32, 6, 6)
    assert not torch.equal(head(maps), head(maps))
    head.eval()
    hidden = torch.stack([maps[..., y : y + 3, x : x + 3].amax((2, 3)) for y in (0, 3) for x in (0, 3)], dim=2)
    hidden = hidden.flatten(1)
    first, second, last = (module for module in head if isinstance(module, nn.Linear))
    torch.testing.assert_close(head(maps), last(second(first(hidden).relu()).relu()))


@pytest.mark.parametrize("kind", ["linear", "fc"])
def test_last_layer_starts_near_zero(kind):
    last = classifier("alexnet", width=0.25, num_classes=1000, kind=kind, grid=2)[-1]
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not last.bias.any()
