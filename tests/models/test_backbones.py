import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import alexnet, get_model
from torchvision.models.vgg import cfgs, make_layers

from models.backbones import Architecture, Pooling, build_backbone, pool_features

CONVS = ("conv1", "conv2", "conv3", "conv4", "conv5")
RESIDUALS = ("res1", "res2", "res3", "res4", "res5")
ALEXNETS = ("alexnet", "alexnet_bn", "caffenet")


def build(name, **options):
    torch.manual_seed(0)
    return build_backbone(Architecture(name=name, **options)).eval()


def image(pixels, *, count=1):
    return torch.rand(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))


def run(backbone, images, layers=None):
    with torch.no_grad():
        return backbone(images, layers)


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [
        ("alexnet", CONVS, (64, 192, 384, 256, 256)),
        ("alexnet_bn", CONVS, (64, 192, 384, 256, 256)),
        ("caffenet", CONVS, (96, 256, 384, 384, 256)),
        ("vgg16", CONVS, (64, 128, 256, 512, 512)),
        ("vgg16_bn", CONVS, (64, 128, 256, 512, 512)),
        ("resnet18", RESIDUALS, (64, 64, 128, 256, 512)),
        ("resnet34", RESIDUALS, (64, 64, 128, 256, 512)),
        ("resnet50", RESIDUALS, (64, 256, 512, 1024, 2048)),
    ],
)
def test_layers_have_the_published_channels(name, layers, channels):
    backbone = build(name)
    maps = run(backbone, image(67), layers)
    assert backbone.layers == layers
    assert tuple(backbone.channels.values()) == channels
    assert {layer: maps[layer].shape[1] for layer in maps} == backbone.channels
    assert all(map_.min() == 0 for map_ in maps.values()), "outputs are taken after the ReLU"


def test_clustered_features_are_8192_for_vgg16_and_9600_for_caffenet():
    vgg = run(build("vgg16"), image(224), ["conv4"])["conv4"]
    caffenet = run(build("caffenet"), image(227), ["conv4"])["conv4"]
    assert vgg.shape[1:] == (512, 28, 28)
    assert pool_features(vgg, Pooling(kind="max", grid=4)).shape == (1, 8192)
    assert pool_features(caffenet, Pooling(kind="max", grid=5)).shape == (1, 9600)
    assert pool_features(run(build("vgg16"), image(32), ["conv4"])["conv4"], Pooling(grid=4)).shape == (
        1,
        8192,
    )


def test_caffenet_gives_the_probe_sizes_of_zhang():
    maps = run(build("caffenet"), image(227), CONVS)
    assert [tuple(map_.shape[-2:]) for map_ in maps.values()] == [(n, n) for n in (55, 27, 13, 13, 13)]
    sizes = [
        pool_features(maps[layer], Pooling(grid=grid)).shape[1]
        for layer, grid in zip(CONVS, (10, 6, 5, 5, 6), strict=True)
    ]
    assert sizes == [9600, 9216, 9600, 9600, 9216]


def test_64_pixel_tile_gives_2304_values_at_stride_2():
    backbone = build("caffenet")
    backbone.set_first_stride(2, 0)
    pool5 = functional.max_pool2d(run(backbone, image(64))["conv5"], 3, stride=2, ceil_mode=True)
    assert pool5[0].numel() == 2304
    later = build("caffenet")
    later.load_state_dict(backbone.state_dict())
    assert run(later, image(227))["conv5"].shape[1:] == (256, 13, 13)


def test_first_stride_and_padding_reach_conv1():
    backbone = build("alexnet")
    assert run(backbone, image(64), ["conv1"])["conv1"].shape[-1] == 15
    backbone.set_first_stride(2, 0)
    assert run(backbone, image(64), ["conv1"])["conv1"].shape[-1] == 27


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_first_stride_of_other_trunks_is_refused(name):
    with pytest.raises(ValueError, match=f"alexnet, alexnet_bn, caffenet, {name} was given"):
        build(name).set_first_stride(2, 0)


def test_alexnet_equals_torchvision_before_its_last_pool():
    features = alexnet(weights=None, num_classes=1).eval().features
    backbone = build("alexnet")
    theirs, ours = features.state_dict(), backbone.state_dict()
    assert [value.shape for value in theirs.values()] == [value.shape for value in ours.values()]
    backbone.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    assert torch.equal(run(backbone, image(224))["conv5"], features[:-1](image(224)))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_equals_torchvision_before_its_last_pool(batch_norm):
    features = make_layers(cfgs["D"], batch_norm=batch_norm).eval()
    backbone = build("vgg16_bn" if batch_norm else "vgg16")
    backbone.load_state_dict(dict(zip(backbone.state_dict(), features.state_dict().values(), strict=True)))
    assert torch.equal(run(backbone, image(32))["conv5"], features[:-1](image(32)))


def test_resnet_equals_torchvision_before_its_pool():
    network = get_model("resnet18", weights=None, num_classes=1).eval()
    backbone = build("resnet18")
    theirs = [value for key, value in network.state_dict().items() if not key.startswith("fc.")]
    backbone.load_state_dict(dict(zip(backbone.state_dict(), theirs, strict=True)))
    network.avgpool, network.fc = nn.Identity(), nn.Identity()
    assert torch.equal(run(backbone, image(64))["res5"].flatten(1), network(image(64)))


def test_caffenet_normalises_after_pooling_as_caffe_does():
    backbone = build("caffenet")
    maps = run(backbone, image(67), ["conv1", "conv2"])
    pooled = functional.max_pool2d(maps["conv1"], 3, stride=2, ceil_mode=True)
    # Caffe: x / (1 + alpha / 5 * sum of squares over 5 channels) ^ beta.
    squares = functional.pad(pooled**2, (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
    normalised = pooled / (1 + 1e-4 / 5 * squares) ** 0.75
    conv = next(module for module in backbone.stages["conv2"] if isinstance(module, nn.Conv2d))
    expected = functional.conv2d(normalised, conv.weight, conv.bias, padding=2, groups=2).relu()
    torch.testing.assert_close(maps["conv2"], expected.detach())


def test_caffenet_has_two_groups_at_conv2_conv4_and_conv5():
    convs = [module for module in build("caffenet").modules() if isinstance(module, nn.Conv2d)]
    assert [conv.groups for conv in convs] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_nothing_deeper_than_asked_is_computed(name):
    backbone = build(name, stem="small")
    reached = []
    for layer, stage in backbone.stages.items():
        stage.register_forward_hook(lambda *_, layer=layer: reached.append(layer))
    maps = run(backbone, image(32), [backbone.layers[2], backbone.layers[0]])
    assert tuple(maps) == (backbone.layers[0], backbone.layers[2])
    assert tuple(reached) == backbone.layers[:3]


def test_last_layer_is_the_default():
    assert tuple(run(build("alexnet", stem="small"), image(32))) == ("conv5",)


@pytest.mark.parametrize("layers", [["conv1", "res1"], []])
def test_wrong_layers_are_refused_with_the_right_ones(layers):
    with pytest.raises(ValueError, match="conv1, conv2, conv3, conv4, conv5 for alexnet"):
        build("alexnet")(image(64), layers)


def test_taking_a_layer_does_not_change_it():
    backbone = build("resnet18", stem="small")
    alone = {layer: run(backbone, image(32), [layer])[layer] for layer in backbone.layers}
    together = run(backbone, image(32), backbone.layers)
    assert all(torch.equal(alone[layer], together[layer]) for layer in backbone.layers)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("alexnet", (32, 15, 7, 7, 7)),
        ("alexnet_bn", (32, 15, 7, 7, 7)),
        ("caffenet", (32, 16, 8, 8, 8)),
        ("vgg16", (32, 16, 8, 4, 2)),
        ("resnet18", (32, 32, 16, 8, 4)),
        ("resnet50", (32, 32, 16, 8, 4)),
    ],
)
def test_small_stem_keeps_32_pixels_apart(name, sides):
    backbone = build(name, stem="small")
    maps = run(backbone, image(32), backbone.layers)
    assert tuple(map_.shape[-1] for map_ in maps.values()) == sides


@pytest.mark.parametrize("name", [*ALEXNETS, "vgg16", "vgg16_bn"])
@pytest.mark.parametrize("width", [0.01, 0.25, 0.3, 1.5])
def test_width_scales_to_multiples_of_eight(name, width):
    full, scaled = build(name), build(name, width=width, stem="small")
    for layer, channels in scaled.channels.items():
        assert channels % 8 == 0 and channels >= 8
        assert abs(channels - width * full.channels[layer]) <= 4 or channels == 8
    assert run(scaled, image(32))["conv5"].shape[1] == scaled.channels["conv5"]


def test_resnet_width_is_refused():
    with pytest.raises(ValueError, match=r"width of resnet50 must be 1.0, 0.5 was given"):
        Architecture(name="resnet50", width=0.5)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'alexnet', 'alexnet_bn', 'caffenet', 'vgg16', .*'resnet50'"):
        Architecture(name="lenet")


@pytest.mark.parametrize("name", ["alexnet_bn", "vgg16_bn"])
def test_batchnorm_follows_every_convolution(name):
    modules = [module for module in build(name).modules() if not list(module.children())]
    for module, following in itertools.pairwise(modules):
        assert isinstance(following, nn.BatchNorm2d) == isinstance(module, nn.Conv2d)


def test_convolutions_start_at_kaiming_fan_out():
    convs = [module for module in build("caffenet").modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
        assert not conv.bias.any()


@pytest.mark.parametrize("name", ["alexnet_bn", "caffenet", "vgg16", "resnet18"])
def test_channels_last_bfloat16_agrees_with_float32(name):
    backbone = build(name, stem="small")
    expected = run(backbone, image(32, count=2))[backbone.layers[-1]]
    compact = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = run(compact, image(32, count=2).contiguous(memory_format=torch.channels_last))
    maps = maps[backbone.layers[-1]]
    assert maps.dtype == torch.bfloat16
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert ((maps - expected).norm() / expected.norm()).item() < 0.03


def test_pooled_features_are_channel_major_in_any_memory_format():
    maps = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    expected = torch.stack(
        [maps[:, c, y : y + 2, x : x + 2].amax((1, 2)) for c in range(3) for y in (0, 2) for x in (0, 2)]
    )
    for given in (maps, maps.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(pool_features(given, Pooling(kind="max", grid=2)), expected.T)
        assert torch.equal(pool_features(given, Pooling()), maps.mean((2, 3)))


def test_grid_finer_than_the_map_is_refused():
    with pytest.raises(ValueError, match="5 was given for a map of 4 x 6"):
        pool_features(torch.zeros(1, 2, 4, 6), Pooling(grid=5))
