"""Convolutional trunks whose every layer can be read.

Shapes: N images, 3 colours, H x W pixels; C channels, h x w map, D values per image.
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

ALEXNET_FAMILY = frozenset({"alexnet", "alexnet_bn", "caffenet"})
# torchvision and scikit-learn take seconds to import: they are where they are used, so that a plan, which needs only
# the settings, does not wait for them.
CHANNEL_MULTIPLE = 8  # keeps grouped convolutions valid and tensor cores fed


class Architecture(BaseModel, frozen=True, extra="forbid"):
    """Which trunk, for which images, how wide."""

    name: Literal["alexnet", "alexnet_bn", "caffenet", "vgg16", "vgg16_bn", "resnet18", "resnet34", "resnet50"]
    stem: Literal["imagenet", "small"] = "imagenet"  # small: for 32 to 64 pixels; VGG is the same in both
    width: PositiveFloat = 1.0  # times the published channels

    @model_validator(mode="after")
    def _resnets_have_one_width(self) -> Self:
        if self.name.startswith("resnet") and self.width != 1.0:
            raise ValueError(
                f"width of {self.name} must be 1.0, {self.width} was given; "
                "take a shallower ResNet, or an AlexNet or VGG, which come in any width"
            )
        return self


class Pooling(BaseModel, frozen=True, extra="forbid"):
    """How a map becomes one vector: adaptive pooling to grid x grid cells."""

    kind: Literal["max", "average"] = "average"
    grid: PositiveInt = 1  # 1: global pooling


class Backbone(nn.Module):
    """A convolutional trunk without classifier; made by `build_backbone`.

    Attributes:
        architecture: what it was built from.
        layers: layer names from the image upwards.
        channels: layer to its number of channels.
    """

    def __init__(self, architecture: Architecture, stages: dict[str, nn.Sequential]) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = tuple(stages)
        self.channels = {layer: _out_channels(stage) for layer, stage in stages.items()}
        self.stages = nn.ModuleDict(stages)

    def forward(self, images_N3HW: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Give the maps of the layers asked for, computing no deeper than the deepest.

        Args:
            images_N3HW: normalised images, (N, 3, H, W) floating point, any memory format.
            layers: names from `self.layers`; the last layer alone if None.
        Returns:
            Layer to its map after the ReLU and before the pooling, (N, C, h, w), shallowest first.
        Raises:
            ValueError: no layer, or one that this trunk lacks, was asked for.
        """
        wanted = {self.layers[-1]} if layers is None else set(layers)
        if not wanted or not wanted <= set(self.layers):
            raise ValueError(
                f"layers must be some of {', '.join(self.layers)} for {self.architecture.name}, "
                f"{sorted(wanted)} was given; name at least one of these"
            )
        outputs: dict[str, Tensor] = {}
        maps = images_N3HW
        for layer, stage in self.stages.items():
            maps = stage(maps)
            if layer in wanted:
                outputs[layer] = maps
            if len(outputs) == len(wanted):
                break
        return outputs

    def set_first_stride(self, stride: int, padding: int) -> None:
        """Change how conv1 steps over the image; its weights stay, and load into either form.

        Jigsaw trains on 64-pixel tiles with stride 2 and no padding, and its weights serve at stride 4 later.

        Args:
            stride: pixels from one window to the next.
            padding: zero pixels around the image.
        Raises:
            ValueError: the trunk is not one of the AlexNet family.
        Source: Noroozi and Favaro 2016, arXiv 1603.09246, section 3.2.
        """
        if self.architecture.name not in ALEXNET_FAMILY:
            raise ValueError(
                f"set_first_stride needs one of {', '.join(sorted(ALEXNET_FAMILY))}, "
                f"{self.architecture.name} was given; the other trunks take small images as they are"
            )
        conv1 = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        conv1.stride = (stride, stride)
        conv1.padding = (padding, padding)


def build_backbone(architecture: Architecture) -> Backbone:
    """Build a trunk with fresh weights: Kaiming (fan out) convolutions, BatchNorm 1 and 0, biases 0.

    Args:
        architecture: name, stem and width.
    Returns:
        The trunk on the CPU, in training mode. Draws from torch's global generator: seed it before.
    """
    if architecture.name in ALEXNET_FAMILY:
        stages = _alexnet_stages(architecture)
    elif architecture.name.startswith("vgg"):
        stages = _vgg_stages(architecture)
    else:
        stages = _resnet_stages(architecture)
    backbone = Backbone(architecture, stages)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return backbone


def pool_features(maps: Tensor, pooling: Pooling) -> Tensor:
    """Pool maps to one vector per image.

    Args:
        maps: (N, C, h, w) floating point.
        pooling: kind and grid.
    Returns:
        (N, C * grid * grid), channel-major: all cells of channel 0 first, whatever the memory format.
    Raises:
        ValueError: the grid is finer than the map, which would only repeat values.
    """
    height, width = maps.shape[-2:]
    if pooling.grid > min(height, width):
        raise ValueError(
            f"pooling grid must be at most the map, {pooling.grid} was given for a map of {height} x {width}; "
            "take a smaller grid, a shallower layer or larger images"
        )
    pool = functional.adaptive_max_pool2d if pooling.kind == "max" else functional.adaptive_avg_pool2d
    return pool(maps, pooling.grid).flatten(start_dim=1)


def scale_channels(channels: int, *, width: float) -> int:
    """Give `channels` times `width`, rounded to a multiple of 8 and never below 8."""
    return max(CHANNEL_MULTIPLE, int(channels * width / CHANNEL_MULTIPLE + 0.5) * CHANNEL_MULTIPLE)


def _alexnet_stages(architecture: Architecture) -> dict[str, nn.Sequential]:
    """Build conv1 to conv5 of AlexNet or CaffeNet.

    Source: Krizhevsky 2014, arXiv 1404.5997 (torchvision's AlexNet: no groups, no LRN), and
        https://github.com/BVLC/caffe/blob/0d2354c/models/bvlc_reference_caffenet/train_val.prototxt
        (pooling before LRN; Caffe rounds pooled sizes up). Differs: the small stem is a 5x5 convolution
        of stride 1, as in Krizhevsky's CIFAR-10 networks.
    """
    caffe = architecture.name == "caffenet"
    published = (96, 256, 384, 384, 256) if caffe else (64, 192, 384, 256, 256)
    groups = (1, 2, 1, 2, 2) if caffe else (1, 1, 1, 1, 1)
    stages: dict[str, nn.Sequential] = {}
    inputs = 3
    for index, kernel in enumerate((11, 5, 3, 3, 3)):
        outputs = scale_channels(published[index], width=architecture.width)
        modules: list[nn.Module] = []
        if index in (1, 2):
            modules.append(nn.MaxPool2d(3, stride=2, ceil_mode=caffe))
            if caffe:
                modules.append(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75))
        if index > 0:
            modules.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups[index]))
        elif architecture.stem == "small":
            modules.append(nn.Conv2d(inputs, outputs, 5, padding=2))
        else:
            modules.append(nn.Conv2d(inputs, outputs, kernel, stride=4, padding=0 if caffe else 2))
        if architecture.name == "alexnet_bn":
            modules.append(nn.BatchNorm2d(outputs))
        modules.append(nn.ReLU(inplace=True))
        stages[f"conv{index + 1}"] = nn.Sequential(*modules)
        inputs = outputs
    return stages


def _vgg_stages(architecture: Architecture) -> dict[str, nn.Sequential]:
    """Cut torchvision's VGG-16 before each pooling, so that a block ends with its last ReLU."""
    from torchvision.models.vgg import cfgs as vgg_widths
    from torchvision.models.vgg import make_layers

    widths: list[str | int] = [
        scale_channels(width, width=architecture.width) if isinstance(width, int) else width
        for width in vgg_widths["D"]
    ]
    blocks: list[list[nn.Module]] = [[]]
    for module in make_layers(widths, batch_norm=architecture.name == "vgg16_bn"):
        if isinstance(module, nn.MaxPool2d):
            blocks.append([])
        blocks[-1].append(module)
    # The last block holds only the pooling after conv5.
    return {f"conv{index}": nn.Sequential(*block) for index, block in enumerate(blocks[:-1], start=1)}


def _resnet_stages(architecture: Architecture) -> dict[str, nn.Sequential]:
    """Take torchvision's ResNet apart; the small stem is the CIFAR one of He et al., arXiv 1512.03385."""
    from torchvision.models import get_model

    network = get_model(architecture.name, weights=None, num_classes=1)
    if architecture.stem == "small":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()  # holds the place, so that both stems name their weights alike
    return {
        "res1": nn.Sequential(network.conv1, network.bn1, network.relu),
        "res2": nn.Sequential(network.maxpool, network.layer1),
        "res3": nn.Sequential(network.layer2),
        "res4": nn.Sequential(network.layer3),
        "res5": nn.Sequential(network.layer4),
    }


def _out_channels(stage: nn.Sequential) -> int:
    """Give the channels of the last convolution; no stage here ends with a ResNet's projected shortcut."""
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
