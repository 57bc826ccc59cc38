from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.backbones import Architecture, build_backbone
from models.pretext.jigsaw_pp import JigsawPP
from models.views import Draw

SMALL = {"resize": 63, "window": 63, "tile": 16, "jitter": 5, "tile_width": 8, "joint_width": 16}
FOREIGN = 100


def build(**settings):
    torch.manual_seed(0)
    backbone = build_backbone(Architecture(name="alexnet_bn", stem="small", width=0.125))
    return JigsawPP(JigsawPP.Config(**{**SMALL, "num_permutations": 20, **settings}), backbone, num_rows=4)


def cells(first=0):
    """An image whose nine cells are flat, each of its raster number plus `first`."""
    numbers = first + torch.arange(9, dtype=torch.uint8).view(3, 3)
    return numbers.repeat_interleave(21, 0).repeat_interleave(21, 1).expand(3, -1, -1)


def views_of(method, row, *, image=None, other=None):
    other = cells(FOREIGN) if other is None else other
    draw = Draw(0, epoch=0, row_id=str(row), others=lambda given: other)
    return method.views(cells() if image is None else image, draw)


@pytest.fixture(scope="module")
def drawn():
    """Labels and cell numbers of many views."""
    method = build()
    views = [views_of(method, row) for row in range(1500)]
    return method, [(view["label"].item(), view["tiles"][:, 0, 0, 0].numpy()) for view in views]


def test_none_one_or_two_tiles_are_replaced_equally_often(drawn):
    counts = Counter(int((numbers >= FOREIGN).sum()) for _, numbers in drawn[1])
    assert set(counts) == {0, 1, 2}
    assert all(count == pytest.approx(500, abs=70) for count in counts.values())


def test_the_label_stays_the_permutation_of_the_host(drawn):
    method, views = drawn
    for label, numbers in views:
        own = numbers < FOREIGN
        assert np.array_equal(numbers[own], method.permutations[label][own])


def test_foreign_tiles_and_their_slots_are_distinct_and_everywhere(drawn):
    slots, sources = Counter(), Counter()
    for _, numbers in drawn[1]:
        foreign = numbers[numbers >= FOREIGN]
        assert len(set(foreign)) == len(foreign)
        slots.update(np.flatnonzero(numbers >= FOREIGN).tolist())
        sources.update(foreign.tolist())
    assert set(slots) == set(range(9)) and set(sources) == set(range(FOREIGN, FOREIGN + 9))
    assert min(slots.values()) > 110 and min(sources.values()) > 110  # 167 expected


def test_host_and_other_image_are_made_grey_independently():
    method = build(channel_shift=0)
    image, other = (
        torch.from_numpy(np.random.default_rng(seed).integers(low, high, (3, 63, 63), dtype=np.uint8))
        for seed, low, high in ((0, 0, 100), (1, 150, 250))
    )
    pairs = Counter()
    for row in range(600):
        tiles = views_of(method, row, image=image, other=other)["tiles"]
        foreign = tiles.flatten(1).min(1).values >= 150
        if foreign.any():
            is_grey = (tiles == tiles[:, :1]).flatten(1).all(1)
            pairs[is_grey[~foreign][0].item(), is_grey[foreign][0].item()] += 1
    total = sum(pairs.values())
    assert pairs[True, True] / total == pytest.approx(0.49, abs=0.08)
    assert pairs[True, False] / total == pytest.approx(0.21, abs=0.08)
    assert pairs[False, True] / total == pytest.approx(0.21, abs=0.08)


def test_replaced_tiles_are_normalised_too():
    method = build(tile_scale=50.0)
    rng = np.random.default_rng(0)
    image, other = (torch.from_numpy(rng.integers(0, 256, (3, 63, 63), dtype=np.uint8)) for _ in range(2))
    for row in range(5):
        values = method.prepare(views_of(method, row, image=image, other=other)["tiles"]).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(9), atol=1e-3, rtol=0)
        torch.testing.assert_close(values.var(1, correction=0), torch.full((9,), 2500.0))


def test_defaults_are_the_papers():
    config = JigsawPP.Config()
    assert (config.num_permutations, config.permutation_method) == (701, "min_distance")
    assert (config.grey_probability, config.max_replaced, config.tile, config.cell) == (0.7, 2, 64, 85)


def test_more_than_two_replaced_tiles_are_refused():
    with pytest.raises(ValidationError, match="max_replaced"):
        JigsawPP.Config(max_replaced=3)
