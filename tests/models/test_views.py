import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from models.views import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Draw,
    center_crop,
    color_jitter,
    evaluation_view,
    flip,
    grey,
    normalise,
    random_crop,
    random_resized_crop,
    resize,
    resize_shorter,
    to_grey,
)


def draw(row="a", **key):
    return Draw(key.pop("seed", 0), epoch=key.pop("epoch", 0), row_id=row, **key)


def image(height=40, width=48, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def test_equal_keys_draw_equal_numbers_and_any_other_key_does_not():
    def numbers(given):
        return [given.uniform(0, 1), given.integers(0, 1000), *given.permutation(9)]

    assert numbers(draw()) == numbers(draw())
    others = [draw("b"), draw(seed=1), draw(epoch=1), draw(view=1)]
    assert all(numbers(other) != numbers(draw()) for other in others)


def test_draws_are_the_same_numbers_for_ever():
    given = draw("0123")
    assert given.integers(0, 10**6) == 831893
    assert given.uniform(0, 1) == pytest.approx(0.2553732631368608, abs=1e-15)


def test_views_of_a_row_do_not_depend_on_each_other():
    first, fresh = draw(), draw()
    first.permutation(5)
    assert first.view(2).uniform(0, 1) == fresh.view(2).uniform(0, 1) == draw(view=2).uniform(0, 1)


def test_chance_has_its_probability():
    assert sum(draw(str(row)).chance(0.3) for row in range(4000)) / 4000 == pytest.approx(0.3, abs=0.03)


def test_other_image_is_read_with_the_draws_of_the_row():
    images = [image(seed=seed) for seed in range(50)]

    def read(given):
        return images[given.integers(0, len(images))]

    assert torch.equal(draw(others=read).other_image(), draw(others=read).other_image())
    seen = {draw(str(row), others=read).view(1).other_image().sum().item() for row in range(20)}
    assert len(seen) > 5


def test_other_image_without_a_reader_says_what_to_pass():
    with pytest.raises(ValueError, match="others="):
        draw().other_image()


def test_random_resized_crop_keeps_its_area_and_ratio():
    # Pixel values tell the place they come from: the range of a crop is its extent.
    rows = torch.arange(200).view(-1, 1).expand(200, 200)
    ramps = torch.stack([rows, rows.T, rows]).to(torch.uint8)
    for row in range(200):
        crop = random_resized_crop(ramps, draw(str(row)), size=200, scale=(0.2, 0.5))
        height = crop[0].max().item() - crop[0].min().item() + 1
        width = crop[1].max().item() - crop[1].min().item() + 1
        assert crop.shape == (3, 200, 200) and crop.dtype == torch.uint8
        assert 0.18 <= height * width / 200**2 <= 0.52
        assert 0.72 <= width / height <= 1.37


def test_random_resized_crop_of_a_long_image_falls_back_to_the_centre():
    long = torch.zeros(3, 20, 400, dtype=torch.uint8)
    long[..., 180:220] = 200
    crop = random_resized_crop(long, draw(), size=20, scale=(0.9, 1.0))
    assert crop.shape == (3, 20, 20)
    assert crop.min() == 200  # the central 20 x 27 pixels


def test_random_crop_reaches_every_place():
    corners = {tuple(random_crop(image(9, 9), draw(str(row)), size=8).flatten()[:1].tolist()) for row in range(60)}
    assert len(corners) == 4


def test_flip_mirrors_half_of_the_images():
    picture = image()
    flipped = [not torch.equal(flip(picture, draw(str(row))), picture) for row in range(1000)]
    assert sum(flipped) == pytest.approx(500, abs=60)
    mirrored = next(view for row in range(99) if not torch.equal(view := flip(picture, draw(str(row))), picture))
    assert torch.equal(mirrored.flip(-1), picture)


def test_grey_is_the_luma_in_all_channels():
    picture = image()
    expected = tvf.rgb_to_grayscale(picture, num_output_channels=3)
    assert (to_grey(picture).int() - expected.int()).abs().max() <= 1  # torchvision rounds down
    assert torch.equal(to_grey(torch.full((3, 2, 2), 77, dtype=torch.uint8))[0, 0], torch.tensor([77, 77]))
    greys = [torch.equal(*grey(picture, draw(str(row)), probability=0.7)[:2]) for row in range(1000)]
    assert sum(greys) == pytest.approx(700, abs=60)


def test_color_jitter_stays_in_its_range_and_strength_zero_changes_nothing():
    picture = image()
    assert torch.equal(color_jitter(picture, draw(), strengths=(0, 0, 0, 0)), picture)
    flat = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    values = {color_jitter(flat, draw(str(row)), strengths=(0.4, 0, 0, 0)).max().item() for row in range(200)}
    assert 60 <= min(values) < 70 and 130 < max(values) <= 140


def test_normalise_is_the_usual_formula_and_leaves_its_input():
    picture = image()
    before = picture.clone()
    expected = tvf.normalize(picture.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(normalise(picture, mean=IMAGENET_MEAN, std=IMAGENET_STD), expected)
    batch = normalise(picture.expand(2, 5, 3, 40, 48), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    torch.testing.assert_close(batch[1, 4], expected)
    assert torch.equal(picture, before)


def test_resize_shorter_keeps_the_aspect_ratio():
    assert resize_shorter(image(40, 60), side=20).shape == (3, 20, 30)
    assert resize_shorter(image(60, 40), side=80).shape == (3, 120, 80)


@pytest.mark.parametrize(("height", "width"), [(1, 20_000), (20_000, 1), (2, 65)])
def test_resize_shorter_keeps_the_middle_of_what_is_nearly_a_line(height, width):
    picture, short = image(height, width), min(height, width)
    start = (max(height, width) - 32 * short) // 2
    window = slice(start, start + 32 * short)
    middle = picture[..., window] if width > height else picture[..., window, :]
    size = (8, 256) if width > height else (256, 8)
    torch.testing.assert_close(resize_shorter(picture, side=8), resize(middle, size=size))


def test_evaluation_view_is_resize_centre_crop_normalise():
    picture = image(50, 70)
    resized = tvf.resize(picture, [32], antialias=True)
    expected = normalise(tvf.center_crop(resized, [28]), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    view = evaluation_view(picture, size=28, resize=32)
    assert view.shape == (3, 28, 28) and view.dtype == torch.float32
    torch.testing.assert_close(view, expected)
    assert center_crop(picture, size=10).shape == (3, 10, 10)


def test_evaluation_view_does_not_depend_on_the_memory_layout():
    picture = image(50, 70)
    by_pixel = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    plain, other = (evaluation_view(given, size=28, resize=32) for given in (picture, by_pixel))
    torch.testing.assert_close(plain, other, atol=0.02, rtol=0)


def test_evaluation_view_refuses_a_crop_larger_than_the_image():
    with pytest.raises(ValueError, match="size=40 is larger than resize=32"):
        evaluation_view(image(), size=40, resize=32)
