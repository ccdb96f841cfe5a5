"""Views against torchvision's transforms, operation by operation, on the same parameters."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from src.models.preprocessing import PIXEL_MEAN, PIXEL_STD, preprocess
from src.training.views import (
    ViewParameters,
    ViewSettings,
    _draw_box,
    _draw_color,
    _hue_matrix,
    draw,
    make_views,
)

SIDE = 96
STILL = ViewSettings(crop_min=1.0, flip=0, jitter=0, gray=0, blur=0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Pieces of two photographs (scikit-learn's china and flower), uint8 (40, 3, 96, 96)."""
    pieces = []
    for photo in load_sample_images().images:
        for i in range(20):
            y, x = 76 * (i // 5), 110 * (i % 5)
            pieces.append(photo[y : y + SIDE, x : x + SIDE].transpose(2, 0, 1))
    return torch.from_numpy(np.stack(pieces))


def still(count: int, **changes: Tensor) -> ViewParameters:
    """Parameters that change nothing, but for `changes`."""
    nothing = ViewParameters(
        box_N4=torch.tensor([0.0, 0, SIDE, SIDE]).repeat(count, 1),
        flip_N=torch.zeros(count),
        kernel_NT=torch.ones(count, 1),
        pixel_N33=torch.eye(3).repeat(count, 1, 1),
        mean_N33=torch.zeros(count, 3, 3),
        affine_N23=torch.empty(0, 2, 3),
    )
    return nothing._replace(**changes)


def views(images: Tensor, parameters: ViewParameters) -> Tensor:
    """Back to values from 0 to 255."""
    out = make_views(images, parameters)
    return (
        out * torch.tensor(PIXEL_STD)[:, None, None] + torch.tensor(PIXEL_MEAN)[:, None, None]
    ) * 255


def test_nothing_drawn_is_the_evaluation_preprocessing(images: Tensor) -> None:
    rng = torch.Generator().manual_seed(0)
    seen = make_views(images, draw(STILL, len(images), SIDE, rng))
    torch.testing.assert_close(seen, preprocess(images), rtol=0, atol=1e-4)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_crop_and_flip(images: Tensor) -> None:
    """Within 1/255 on average, and nowhere off by more than rounding: also at the crop's edges."""
    box = _draw_box(len(images), SIDE, 0.08, torch.Generator().manual_seed(1))
    flip = (torch.arange(len(images)) % 2).float()
    ours = views(images, still(len(images), box_N4=box, flip_N=flip))
    for i, image in enumerate(images):
        top, left, height, width = (int(v) for v in box[i])
        expected = tv.resized_crop(image, top, left, height, width, [SIDE, SIDE], antialias=True)
        expected = tv.hflip(expected) if flip[i] else expected
        error = (ours[i] - expected).abs()
        assert error.mean() < 0.5
        assert error.max() < 1.5


def test_crop_boxes_have_torchvisions_distribution() -> None:
    ours = _draw_box(4000, SIDE, 0.08, torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    image = torch.empty(3, SIDE, SIDE)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    )
    for column, expected in zip(ours.T, theirs.T.float(), strict=True):
        quantiles = torch.linspace(0.05, 0.95, 10)
        off = torch.quantile(column, quantiles) - torch.quantile(expected, quantiles)
        assert off.abs().max() < 4  # pixels, about three standard errors


def test_blur(images: Tensor) -> None:
    taps = torch.arange(-4, 5.0)
    sigma = torch.linspace(0.1, 2, len(images))[:, None]
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    ours = views(images, still(len(images), kernel_NT=kernel))
    for i, image in enumerate(images):
        expected = tv.gaussian_blur(image.float(), [9, 9], [float(sigma[i])] * 2)
        torch.testing.assert_close(ours[i], expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.3, 0.7, 1.4, 1.8])
def test_brightness_contrast_saturation(images: Tensor, name: str, factor: float) -> None:
    n, gray = len(images), torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    pixel = {
        "brightness": factor * torch.eye(3),
        "contrast": factor * torch.eye(3),
        "saturation": factor * torch.eye(3) + (1 - factor) * gray,
    }[name]
    mean = (1 - factor) * gray if name == "contrast" else torch.zeros(3, 3)
    ours = views(images, still(n, pixel_N33=pixel.repeat(n, 1, 1), mean_N33=mean.repeat(n, 1, 1)))
    expected = getattr(tv, f"adjust_{name}")(images.float() / 255, factor) * 255
    assert (ours - expected).abs().mean() < 0.5  # torchvision's luma has four digits


@pytest.mark.parametrize("turn", [-0.1, -0.05, 0.05, 0.1])
def test_hue_is_near_torchvisions(images: Tensor, turn: float) -> None:
    """Off by at most 0.9 of what hue itself moves the pixels, on strongly colored photographs,
    and by much less than turning the other way (on STL-10: 0.66)."""
    n = len(images)
    ours = views(images, still(n, pixel_N33=_hue_matrix(torch.full((n,), turn))))
    expected = tv.adjust_hue(images.float() / 255, turn) * 255
    error = (ours - expected).abs().mean()
    assert error < 0.9 * (expected - images).abs().mean()
    wrong_way = views(images, still(n, pixel_N33=_hue_matrix(torch.full((n,), -turn))))
    assert error < 0.5 * (wrong_way - expected).abs().mean()


def test_one_clamp_for_the_whole_chain_of_color_operations(images: Tensor) -> None:
    """Against torchvision's order with a clamp after each operation (hue apart): at strength 0.5
    off by under 2/255 on average."""
    rng = torch.Generator().manual_seed(5)
    factors = 0.6 + 0.8 * torch.rand(len(images), 3, generator=rng)
    orders = torch.rand(len(images), 3, generator=rng).argsort(1)
    gray = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    operations = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
    pixels, means, expected = [], [], []
    for image, factor, order in zip(images, factors, orders, strict=True):
        pixel, mean, x = torch.eye(3), torch.zeros(3, 3), image.float() / 255
        for kind in order.tolist():
            f = float(factor[kind])
            x = operations[kind](x, f)
            now = f * torch.eye(3) + ((1 - f) * gray if kind == 2 else 0)
            pixel, mean = (
                now @ pixel,
                now @ mean + ((1 - f) * gray @ (pixel + mean) if kind == 1 else 0),
            )
        pixels.append(pixel)
        means.append(mean)
        expected.append(x * 255)
    ours = views(
        images, still(len(images), pixel_N33=torch.stack(pixels), mean_N33=torch.stack(means))
    )
    assert (ours - torch.stack(expected)).abs().mean() < 2


def test_color_is_drawn_with_the_papers_probabilities() -> None:
    settings = ViewSettings(jitter=0.5, gray=0.2)
    pixel, mean = _draw_color(settings, 5000, torch.Generator().manual_seed(6))
    kept = ((pixel - torch.eye(3)).abs().amax((1, 2)) < 1e-6).float().mean()
    assert kept == pytest.approx(0.2 * 0.8, abs=0.02)  # neither jitter nor gray
    white = (pixel + mean) @ torch.ones(3)  # gray stays gray, only brightness moves it
    assert torch.allclose(white, white[:, :1].expand(-1, 3), atol=1e-4)
    colorless = (pixel[:, 0] - pixel[:, 1]).abs().amax(1) < 1e-6
    assert colorless.float().mean() == pytest.approx(0.2, abs=0.02)
    assert 0.55 < white.min() < 0.65  # 1 - 0.8 s
    assert 1.35 < white.max() < 1.45


def test_every_view_has_parameters_of_its_own_and_only_the_generator_decides() -> None:
    first, again = (
        draw(ViewSettings(rotation=10), 64, SIDE, torch.Generator().manual_seed(7)) for _ in "ab"
    )
    for tensor, same in zip(first, again, strict=True):
        assert torch.equal(tensor, same)
        assert len(tensor.unique(dim=0)) > 1


def test_affine_is_torchvisions(images: Tensor) -> None:
    """Rotation, shift and zoom, away from the border that the two fill differently;
    the slant against its definition."""
    n, inner = len(images), (slice(None), slice(None), slice(16, -16), slice(16, -16))
    rng = torch.Generator().manual_seed(8)
    still_but = {"crop_min": 1.0, "flip": 0, "jitter": 0, "gray": 0, "blur": 0}
    p = draw(ViewSettings(**still_but, rotation=15, shift=0.05, zoom=0.1), n, SIDE, rng)
    ours = views(images, p)
    expected = []
    for image, matrix in zip(images, p.affine_N23, strict=True):
        scale = matrix[:, :2].det().sqrt()
        angle = -torch.rad2deg(torch.atan2(matrix[1, 0], matrix[0, 0]))
        moved = -torch.linalg.solve(matrix[:, :2], matrix[:, 2]) * SIDE / 2
        expected.append(
            tv.affine(image.float(), float(angle), moved.tolist(), float(1 / scale), [0.0, 0.0],
                      interpolation=InterpolationMode.BILINEAR)
        )  # fmt: skip
    error = (ours - torch.stack(expected)).abs()[inner]
    assert error.mean() < 0.5

    slanted = draw(ViewSettings(**still_but, shear=20), 500, SIDE, rng).affine_N23
    assert torch.equal(slanted[:, 1], torch.tensor([0.0, 1, 0]).expand(500, 3))
    angles = torch.rad2deg(torch.atan(slanted[:, 0, 1]))
    assert 19 < angles.max() < 20
    assert -20 < angles.min() < -19
