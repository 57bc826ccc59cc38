"""Classifiers on top of a trunk's last map."""

from typing import Literal

from torch import nn

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
