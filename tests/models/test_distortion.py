import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from models.distortion import MultiCropConfig, PairConfig, SingleConfig, distort, multi_crop, pair, single
from models.views import Draw, blur, solarize, to_grey

OFF = {"jitter_probability": 0.0, "grey_probability": 0.0}


def draw(row="a"):
    return Draw(0, epoch=0, row_id=str(row))


def image(height=40, width=48):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))


def test_solarize_inverts_the_bright_half():
    values = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).expand(3, 1, 4)
    assert solarize(values, draw(), probability=1.0)[0, 0].tolist() == [0, 127, 127, 0]
    assert torch.equal(solarize(values, draw(), probability=0.0), values)


def test_blur_is_pillows_with_a_drawn_deviation():
    given = draw()
    given.chance(1.0)
    deviation = given.uniform(0.1, 2.0)
    picture = Image.fromarray(image().permute(1, 2, 0).numpy())
    expected = np.asarray(picture.filter(ImageFilter.GaussianBlur(deviation)))
    found = blur(image(), draw(), probability=1.0)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected) and found.dtype == torch.uint8
    assert torch.equal(blur(image(), draw(), probability=0.0), image())


def test_blur_keeps_the_mean_and_lowers_the_contrast():
    sharp, soft = image(64, 64).float(), blur(image(64, 64), draw(), probability=1.0, sigma=(2.0, 2.0)).float()
    assert soft.mean() == pytest.approx(sharp.mean().item(), abs=1) and soft.std() < sharp.std() / 4


@pytest.mark.parametrize(
    ("settings", "changes", "probability"),
    [({"grey_probability": 0.2}, {}, 0.2), ({}, {"blurred": 0.5}, 0.5), ({}, {"inverted": 0.2}, 0.2)],
)
def test_each_distortion_has_its_own_probability(settings, changes, probability):
    config = SingleConfig(**{**OFF, **settings})
    changed = [not torch.equal(distort(image(), draw(row), config, **changes), image()) for row in range(400)]
    assert sum(changed) == pytest.approx(400 * probability, abs=45)


def test_all_off_is_crop_and_mirror_alone():
    picture = image(32, 32)
    config = SingleConfig(crop_size=32, crop_scale=(1.0, 1.0), **OFF)
    views = [single(picture, draw(row), config) for row in range(20)]
    flat = [torch.equal(view, picture) or torch.equal(view, picture.flip(-1)) for view in views]
    assert sum(flat) > 5  # where the drawn ratio fits, the crop is the whole image


def test_what_is_given_twice_is_of_the_first_and_the_second_view():
    config = PairConfig(crop_size=16, jitter_probability=0.0, grey_probability=1.0, solarize_probability=(0.0, 1.0))
    bright = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    views = pair(bright, draw(), config)
    assert views.shape == (2, 3, 16, 16) and views.dtype == torch.uint8
    grey = to_grey(bright)[0, 0, 0]
    assert (views[0] == grey).all() and (views[1] == 255 - grey).all()


def test_views_of_one_image_are_drawn_apart():
    views = pair(image(), draw(), PairConfig(crop_size=16))
    assert not torch.equal(views[0], views[1])


def test_multi_crop_makes_two_large_and_the_small_ones():
    config = MultiCropConfig(
        large_size=24, small_size=8, num_small=3, **OFF, blur_probability=(0, 0, 0), solarize_probability=(0, 1, 0)
    )
    bright = torch.full((3, 40, 40), 200, dtype=torch.uint8)
    views = multi_crop(bright, draw(), config)
    assert views["large"].shape == (2, 3, 24, 24) and views["small"].shape == (3, 3, 8, 8)
    assert (views["large"][0] == 200).all() and (views["large"][1] == 55).all() and (views["small"] == 200).all()
    assert list(multi_crop(bright, draw(), config.model_copy(update={"num_small": 0}))) == ["large"]


def test_small_crops_show_less_of_the_image():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)
    config = MultiCropConfig(large_size=32, small_size=16, **OFF, blur_probability=(0, 0, 0))
    shown = {"large": [], "small": []}
    for row in range(30):
        for name, crops in multi_crop(ramp, draw(row), config).items():
            shown[name] += [(crop.max().int() - crop.min().int()).item() for crop in crops]
    assert max(shown["small"]) < 110 < max(shown["large"])
