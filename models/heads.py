"""What stands on a trunk's last map: classifiers, and the small networks that training alone needs."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from models.backbones import ALEXNET_FAMILY, Backbone, scale_channels

HIDDEN_UNITS = 4096  # fc6 and fc7 of AlexNet and VGG
DROPOUT = 0.5
ALEXNET_GRID = 6  # pool5 of AlexNet at 227 pixels
OTHER_GRID = 7  # pool5 of VGG, and res5, at 224 pixels
LAST_LAYER_STD = 0.01


def build_classifier(
    backbone: Backbone, *, num_classes: int, kind: Literal["linear", "fc"], grid: int | None = None
) -> nn.Sequential:
    """Build a classifier of the trunk's last map.

    Args:
        backbone: the trunk; its last layer gives the channels, its width scales the hidden units.
        num_classes: number of logits.
        kind: "linear" averages the map and has one layer; "fc" takes the maxima and is the
            three-layer classifier of AlexNet and VGG, with dropout.
        grid: cells per side of the pooled map. None: 1 for "linear", and for "fc" what the published
            network has at its full image size (6 for the AlexNet family, 7 otherwise); give a smaller one
            for small images.
    Returns:
        A module from (N, C, h, w) to logits (N, num_classes). Its last layer starts at N(0, 0.01), bias 0.
    Source: Krizhevsky et al. 2012 for the hidden layers and the initialisation of the last one.
    """
    channels = backbone.channels[backbone.layers[-1]]
    modules: list[nn.Module]
    if kind == "linear":
        cells = 1 if grid is None else grid
        inputs = channels * cells**2
        modules = [nn.AdaptiveAvgPool2d(cells), nn.Flatten()]
    else:
        published = ALEXNET_GRID if backbone.architecture.name in ALEXNET_FAMILY else OTHER_GRID
        cells = published if grid is None else grid
        inputs = scale_channels(HIDDEN_UNITS, width=backbone.architecture.width)
        modules = [nn.AdaptiveMaxPool2d(cells), nn.Flatten()]
        for width in (channels * cells**2, inputs):
            modules += [nn.Dropout(DROPOUT), nn.Linear(width, inputs), nn.ReLU(inplace=True)]
    last = nn.Linear(inputs, num_classes)
    nn.init.normal_(last.weight, std=LAST_LAYER_STD)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*modules, last)


def pooled(backbone: Backbone, images: Tensor) -> Tensor:
    """Average the last map of normalised images (N, 3, H, W): (N, C)."""
    maps: Tensor = backbone(images)[backbone.layers[-1]]
    return maps.mean((-2, -1))


def pooled_dim(backbone: Backbone) -> int:
    """Width of what `pooled` gives."""
    return backbone.channels[backbone.layers[-1]]


def build_mlp(
    *dims: int,
    norm: bool = True,
    last_norm: Literal["none", "plain", "affine"] = "none",
    last_bias: bool = True,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build a projector or predictor of vectors.

    Args:
        dims: widths from the input to the output, at least two.
        norm: BatchNorm before each activation; the linear layers before a BatchNorm have no bias.
        last_norm: of the output: no BatchNorm, one without scale and shift, or a usual one.
        last_bias: of the output's linear layer, where no BatchNorm follows.
        activation: between the layers.
    Returns:
        A module from (N, dims[0]) to (N, dims[-1]), with torch's own initialisation.
    """
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(dims[:-1]):
        modules += [nn.Linear(inputs, outputs, bias=not norm)]
        modules += [nn.BatchNorm1d(outputs)] if norm else []
        modules += [activation()]
    modules += [nn.Linear(dims[-2], dims[-1], bias=last_bias and last_norm == "none")]
    if last_norm != "none":
        modules += [nn.BatchNorm1d(dims[-1], affine=last_norm == "affine")]
    return nn.Sequential(*modules)
