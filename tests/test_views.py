"""Views against torchvision's transforms: what is drawn, and what a drawn view looks like."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop, v2

from src.models.preprocessing import pixels, preprocess
from src.training.batches import paired_views
from src.training.flags import TrainConfig, ViewSettings, flag_values
from src.training.views import ViewParameters, draw, make_views

SIDE = 96
STILL = ViewSettings(crop_min=1.0, flip=0, jitter=0, gray=0, blur=0)
LUMA = torch.tensor([0.299, 0.587, 0.114])
QUANTILES = torch.linspace(0.05, 0.95, 10)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Pieces of two photographs (scikit-learn's china and flower), uint8 (40, 3, 96, 96)."""
    photos = [torch.tensor(photo).permute(2, 0, 1) for photo in load_sample_images().images]
    corners = [(76 * (i // 5), 110 * (i % 5)) for i in range(20)]
    pieces = [photo[:, y : y + SIDE, x : x + SIDE] for photo in photos for y, x in corners]
    return torch.stack(pieces)


def views(images: Tensor, parameters: ViewParameters) -> Tensor:
    """With values from 0 to 255."""
    return pixels(make_views(images, parameters))


def test_nothing_drawn_is_the_evaluation_preprocessing(images: Tensor) -> None:
    out = make_views(images, draw(STILL, len(images), SIDE, rng(0)))
    torch.testing.assert_close(out, preprocess(images), rtol=0, atol=1e-4)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_smaller_views_are_means_of_what_they_cover(images: Tensor) -> None:
    """As Pillow reduces a cut-out part: antialiased, nothing from outside the crop."""
    parameters = draw(replace(STILL, view_size=40), len(images), SIDE, rng(0))
    parameters = parameters._replace(box_N4=torch.tensor([[10.0, 5, 80, 60]] * len(images)))
    out = pixels(make_views(images, parameters, 40)).round()
    assert out.shape[2:] == (40, 40)
    for image, view in zip(images, out, strict=True):
        part = Image.fromarray(image[:, 10:90, 5:65].permute(1, 2, 0).numpy())
        expected = np.asarray(part.resize((40, 40), Image.Resampling.BILINEAR), np.float32)
        assert np.abs(view.permute(1, 2, 0).numpy() - expected).max() <= 2
    as_images = make_views(images, parameters, SIDE + 9)
    assert torch.equal(as_images, make_views(images, parameters))


def test_every_view_has_parameters_of_its_own_and_only_the_generator_decides() -> None:
    first, again = (draw(ViewSettings(rotation=10, blur=0.5), 64, SIDE, rng(7)) for _ in "ab")
    for tensor, same in zip(first, again, strict=True):
        assert torch.equal(tensor, same)
        assert len(tensor.unique(dim=0)) > 1


@pytest.mark.parametrize("settings", [ViewSettings(), ViewSettings(rotation=10, blur=0.5)])
def test_some_rows_are_those_of_the_whole_batch(settings: ViewSettings) -> None:
    """To the bit: every process of torchrun computes its own."""
    whole = draw(settings, 60, SIDE, rng(7))
    for rows in (torch.arange(3, 6), torch.tensor([59, 0, 17])):
        own = draw(settings, 60, SIDE, rng(7), rows)
        for tensor, expected in zip(own, whole, strict=True):
            assert torch.equal(tensor, expected[rows] if len(expected) else expected)


def test_two_views_of_the_same_pictures_in_every_call(images: Tensor) -> None:
    def pairs(settings: ViewSettings, count: int) -> tuple[Tensor, Tensor]:
        """The first and the second views, (n, 3, S, S) each."""
        parts = list(paired_views(images.numpy(), settings, torch.device("cpu"), count))
        assert max(map(len, parts)) <= 64
        first, second = zip(*(part.chunk(2) for part in parts), strict=True)
        return torch.cat(first), torch.cat(second)

    first, second = pairs(STILL, 100)
    assert len(first) == len(images)  # all of them, once
    shown = [int((preprocess(images) - x).abs().mean((1, 2, 3)).argmin()) for x in first]
    assert sorted(shown) == list(range(len(images)))
    torch.testing.assert_close(first, preprocess(images[shown]), rtol=0, atol=1e-4)
    assert torch.equal(first, second)

    some, _ = pairs(STILL, 35)
    assert torch.equal(some, first[:35])
    first, second = pairs(ViewSettings(), 40)
    assert (first == second).flatten(1).all(1).sum() <= 1  # a piece of white sky
    assert all(map(torch.equal, pairs(ViewSettings(), 40), (first, second)))


def test_pixels_reverse_the_preprocessing(images: Tensor) -> None:
    torch.testing.assert_close(pixels(preprocess(images)), images.float(), rtol=0, atol=1e-3)


def test_settings_are_found_among_the_flags_of_a_training() -> None:
    config = TrainConfig.for_dataset("digits")
    assert ViewSettings.of(flag_values(config)) == config.views != ViewSettings()
    assert ViewSettings.of({"gray": 0.5, "epochs": 3}) == ViewSettings(gray=0.5)


# --- geometry ---------------------------------------------------------------------------------


def test_crop_and_flip(images: Tensor) -> None:
    """Within 1/255 on average, and nowhere off by more than rounding: also at the crop's edges."""
    parameters = draw(replace(STILL, crop_min=0.08, flip=0.5), len(images), SIDE, rng(1))
    ours = views(images, parameters)
    assert 10 < parameters.flip_N.sum() < 30
    for view, image, box, flip in zip(
        ours, images, parameters.box_N4.int().tolist(), parameters.flip_N, strict=True
    ):
        expected = tv.resized_crop(image, *box, [SIDE, SIDE], antialias=True)
        error = (view - (tv.hflip(expected) if flip else expected)).abs()
        assert error.mean() < 0.5
        assert error.max() < 1.5


def test_crop_boxes_have_torchvisions_distribution() -> None:
    ours = draw(replace(STILL, crop_min=0.08), 4000, SIDE, rng(2)).box_N4
    torch.manual_seed(3)
    image = torch.empty(3, SIDE, SIDE)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    )
    for column, expected in zip(ours.T, theirs.T.float(), strict=True):
        assert_same_quantiles(column, expected, 4)  # pixels, about three standard errors


def share(chosen: Tensor) -> float:
    return chosen.float().mean().item()


def assert_same_quantiles(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    off = torch.quantile(ours, QUANTILES) - torch.quantile(theirs, QUANTILES)
    assert off.abs().max() < tolerance


def test_affine_is_torchvisions(images: Tensor) -> None:
    """Rotation, shift and zoom, away from the border that the two fill differently;
    the slant against its definition."""
    n, inner = len(images), (slice(None), slice(None), slice(16, -16), slice(16, -16))
    p = draw(replace(STILL, rotation=15, shift=0.05, zoom=0.1), n, SIDE, rng(8))
    expected = []
    for image, matrix in zip(images, p.affine_N23, strict=True):
        scale = matrix[:, :2].det().sqrt()
        angle = -torch.rad2deg(torch.atan2(matrix[1, 0], matrix[0, 0]))
        moved = -torch.linalg.solve(matrix[:, :2], matrix[:, 2]) * SIDE / 2
        expected.append(
            tv.affine(image.float(), float(angle), moved.tolist(), float(1 / scale), [0.0, 0.0],
                      interpolation=InterpolationMode.BILINEAR)
        )  # fmt: skip
    error = (views(images, p) - torch.stack(expected)).abs()[inner]
    assert error.mean() < 0.5

    slanted = draw(replace(STILL, shear=20), 500, SIDE, rng(9)).affine_N23
    assert torch.equal(slanted[:, 1], torch.tensor([0.0, 1, 0]).expand(500, 3))
    angles = torch.rad2deg(torch.atan(slanted[:, 0, 1]))
    assert 19 < angles.max() < 20
    assert -20 < angles.min() < -19


# --- blur -------------------------------------------------------------------------------------


def sigma_of(views_NCSS: Tensor) -> Tensor:
    """The sigma that blurred each picture of one white pixel in the middle, 0 without blur: the
    ratio of neighboring weights is exp(-1 / (2 sigma^2))."""
    middle = views_NCSS.shape[-1] // 2
    row = views_NCSS[:, 0, middle]
    ratio = (row[:, middle + 1] / row[:, middle]).clamp(1e-12, 1 - 1e-6)
    return torch.where(ratio > 1e-4, (-0.5 / ratio.log()).sqrt(), 0.0)


def test_blur_has_torchvisions_distribution() -> None:
    n, dot = 600, torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    dot[:, SIDE // 2, SIDE // 2] = 255
    ours = views(dot.repeat(n, 1, 1, 1), draw(replace(STILL, blur=0.5), n, SIDE, rng(4)))
    blur = v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5)
    torch.manual_seed(5)
    small = dot[:1, 40:57, 40:57].float()
    theirs = torch.stack([blur(small) for _ in range(n)])
    sigma, expected = sigma_of(ours), sigma_of(theirs)
    assert share(sigma > 0) == pytest.approx(share(expected > 0), abs=0.07)
    assert_same_quantiles(sigma[sigma > 0], expected[expected > 0], 0.25)


def test_blur(images: Tensor) -> None:
    n = len(images)
    parameters = draw(replace(STILL, blur=1), n, SIDE, rng(6))
    dots = torch.zeros(n, 3, SIDE, SIDE, dtype=torch.uint8)
    dots[:, :, SIDE // 2, SIDE // 2] = 255
    sigma = sigma_of(views(dots, parameters)).clamp_min(0.1).tolist()
    for view, image, s in zip(views(images, parameters), images, sigma, strict=True):
        expected = tv.gaussian_blur(image.float(), [9, 9], [s, s])
        torch.testing.assert_close(view, expected, rtol=0, atol=0.1)


# --- color ------------------------------------------------------------------------------------


class Jitter(NamedTuple):
    """What ColorJitter did to N views, as recovered from them: factors, and turns of the hue."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    before_hue: Tensor
    """Product of those of contrast and saturation that came before the hue."""


def jitter_of(parameters: ViewParameters) -> Jitter:
    """Measured on views of small plain and two-colored pictures.

    A plain picture of color c becomes T c: brightness b multiplies it, and contrast, saturation
    and hue keep gray as it is, so T 1 = b. Contrast and saturation scale its distance to its own
    luma, hue turns the color around the gray axis. On the two halves of a picture that differ by
    d, contrast multiplies d by its factor.
    """
    n, eye = len(parameters.box_N4), torch.eye(3)
    parameters = parameters._replace(box_N4=torch.tensor([[0.0, 0, 4, 4]]).expand(n, 4))

    def color(values: Tensor, right: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Left and right pixel (N, 3) of the views of a picture with these colors."""
        picture = torch.stack([values, values, *[values if right is None else right] * 2], 1)
        views_of = views(picture.to(torch.uint8)[:, None].expand(n, 3, 4, 4), parameters)
        return views_of[:, :, 0, 0], views_of[:, :, 0, -1]

    base = torch.full((3,), 90.0)
    gray = color(base)[0]
    brightness = gray.mean(1) / 90
    plain = torch.stack([(color(base + 20 * axis)[0] - gray) / 20 for axis in eye], 2)
    plain = plain / brightness[:, None, None]
    halves = [color(base + 20 * axis, base - 20 * axis) for axis in eye]
    pixel = torch.stack([(left - right) / 40 for left, right in halves], 2)

    chroma = torch.linalg.det(plain).clamp_min(1e-9).sqrt()  # contrast x saturation
    contrast = torch.linalg.det(pixel) / brightness**3 / chroma**2
    across = torch.tensor([[2.0, -1, -1], [0, 3**0.5, -(3**0.5)]]) / 6**0.5  # the color plane
    turned = across @ plain @ across.T
    hue = torch.atan2(turned[:, 1, 0] - turned[:, 0, 1], turned[:, 0, 0] + turned[:, 1, 1])
    cos, sin = hue.cos()[:, None, None], hue.sin()[:, None, None]
    rotation = (
        1 / 3
        + cos * (eye - 1 / 3)
        + sin * torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    )
    # The luma of a color changes by the hue alone, and by less where the color was pale before.
    moved, full = LUMA @ plain - LUMA, LUMA @ rotation - LUMA
    before = (moved * full).sum(1) / full.square().sum(1)
    return Jitter(brightness, contrast, chroma / contrast, hue / (2 * torch.pi), before)


def test_color_jitter_has_torchvisions_distribution() -> None:
    ours = jitter_of(draw(replace(STILL, jitter=0.5), 4000, 4, rng(10)))
    jittered = (ours.brightness - 1).abs() > 1e-4
    assert share(jittered) == pytest.approx(0.8, abs=0.02)
    torch.manual_seed(11)
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    limits = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    drawn = [ColorJitter.get_params(*limits) for _ in range(5000)]
    factors = torch.tensor([factors for _, *factors in drawn])
    for name, expected in zip(Jitter._fields, factors.T, strict=False):
        tolerance = 0.01 if name == "hue" else 0.04
        assert_same_quantiles(getattr(ours, name)[jittered], expected, tolerance)


def test_color_operations_come_in_every_order() -> None:
    """Hue comes before, between or after contrast and saturation, as in torchvision."""
    ours = jitter_of(draw(replace(STILL, jitter=0.5), 4000, 4, rng(12)))
    clear = (ours.hue.abs() > 0.03) & ((ours.contrast - ours.saturation).abs() > 0.05)
    clear &= ((ours.contrast - 1).abs() > 0.05) & ((ours.saturation - 1).abs() > 0.05)
    orders = torch.stack(
        [torch.ones(4000), ours.contrast, ours.saturation, ours.contrast * ours.saturation], 1
    )
    nearest = (orders - ours.before_hue[:, None]).abs().argmin(1)[clear]
    shares = torch.bincount(nearest, minlength=4) / len(nearest)
    assert shares.tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 3], abs=0.04)


def test_color_jitter_is_near_torchvisions(images: Tensor) -> None:
    """The same factors and order in torchvision, which clamps after every operation and turns the
    hue in HSV: off by under 3.5/255 on average."""
    parameters = draw(replace(STILL, jitter=0.5), len(images), SIDE, rng(13))
    ours, jitter = views(images, parameters), jitter_of(parameters)
    expected = []
    for image, b, c, s, h, before in zip(images, *map(Tensor.tolist, jitter), strict=True):
        choices = {"": 1.0, "c": c, "s": s, "cs": c * s}
        first = min(choices, key=lambda names: abs(choices[names] - before))
        operations = {
            "b": (tv.adjust_brightness, b), "c": (tv.adjust_contrast, c),
            "s": (tv.adjust_saturation, s), "h": (tv.adjust_hue, h),
        }  # fmt: skip
        x = image.float() / 255
        for name in [*first, "h", *(set("bcs") - set(first))]:
            adjust, factor = operations[name]
            x = adjust(x, factor)
        expected.append(x * 255)
    assert (ours - torch.stack(expected)).abs().mean() < 3.5


def test_gray_views() -> None:
    picture = torch.tensor([90, 60, 30], dtype=torch.uint8)[:, None, None].expand(2000, 3, 4, 4)
    color = views(picture, draw(replace(STILL, jitter=0.5, gray=0.2), 2000, 4, rng(14)))[:, :, 0, 0]
    without_color = (color.amax(1) - color.amin(1)) < 0.01
    assert share(without_color) == pytest.approx(0.2, abs=0.02)
    still = views(picture, draw(replace(STILL, gray=1), 2000, 4, rng(15)))
    expected = tv.rgb_to_grayscale(picture[:1].float(), 3)
    torch.testing.assert_close(still, expected.expand_as(still), rtol=0, atol=0.02)
