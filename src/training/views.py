"""SimCLR's random views, for a whole batch at once.

Every view has its own random parameters, drawn on the CPU from an explicit generator, so all
devices make the same views. Making them takes a few batched matrix products on any device.

Shape letters: N views, S side of an image and V of its view in pixels, C = 3 color channels.

The views follow torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter,
RandomGrayscale and GaussianBlur (Chen et al. 2020, appendix A), with three deliberate
differences, each measured in `tests/test_views.py`:
- Crop, flip and blur are linear along rows and columns, so they are folded into one matrix for
  the rows and one for the columns. Blur thus precedes color; without clamping the two commute.
- The chain of color operations is one 3x3 matrix on the pixel and one on the view's mean
  color. Values are clamped once at the end instead of after each operation.
- Hue is a rotation of the color around the gray axis of the RGB cube, which is a matrix, not HSV.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.preprocessing import PIXEL_MEAN, PIXEL_STD, channels
from src.training.flags import ViewSettings

_GRAY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601 luma


class ViewParameters(NamedTuple):
    """The random parameters of N views: a few small tensors to copy to the device."""

    box_N4: Tensor
    """Crop: top, left, height, width in pixels."""
    flip_N: Tensor
    """1 for a mirror image, otherwise 0."""
    kernel_NT: Tensor
    """Blur weights of the T taps."""
    pixel_N33: Tensor
    """Color: the matrix that multiplies a pixel's color ..."""
    mean_N33: Tensor
    """... and the one that multiplies the view's mean color (contrast). Their sum is the result."""
    affine_N23: Tensor
    """From a view's coordinates to the image's, both -1 to 1; (0, 2, 3) without rotation, shear,
    shift and zoom."""


Random = Callable[..., Tensor]
"""Uniform numbers from 0 to 1, (N, ...) for the shape (...)."""


def draw(
    settings: ViewSettings,
    views: int,
    side: int,
    rng: torch.Generator,
    rows: Tensor | slice = slice(None),
) -> ViewParameters:
    """Random parameters for `views` views of images with `side` pixels a side, on the CPU.

    Args:
        rows: the views to compute them for; random numbers are always drawn for all.
    """

    def random(*shape: int) -> Tensor:
        return torch.rand(views, *shape, generator=rng)[rows]

    view_side = min(settings.view_size or side, side)
    pixel, mean = _draw_color(settings, random)
    return ViewParameters(
        box_N4=_draw_box(random, side, settings.crop_min),
        flip_N=(random() < settings.flip).float(),
        kernel_NT=_draw_blur(random, view_side, settings.blur),
        pixel_N33=pixel,
        mean_N33=mean,
        affine_N23=_draw_affine(settings, views, rng, rows),
    )


def make_views(images_NCSS: Tensor, parameters: ViewParameters, view_size: int = 0) -> Tensor:
    """One view (N, 3, V, V) of each uint8 image (N, 3, S, S), normalized, float32, channels last.

    Args:
        parameters: a row for every image, on its device.
        view_size: V; 0 is S, and so is everything above.
    """
    side = images_NCSS.shape[-1]
    view_side = min(view_size or side, side)
    top, left, height, width = parameters.box_N4.unbind(1)
    x = images_NCSS.float()
    if len(parameters.affine_N23):
        grid = F.affine_grid(parameters.affine_N23, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    rows = _crop_matrix(top, height, side, view_side)
    columns = _crop_matrix(left, width, side, view_side)
    columns = torch.where(parameters.flip_N[:, None, None] > 0, columns.flip(1), columns)
    if parameters.kernel_NT.shape[1] > 1:
        blur = _blur_matrix(parameters.kernel_NT, view_side)
        rows, columns = blur @ rows, blur @ columns
    n = len(x)
    x = torch.bmm(x.reshape(n, 3 * side, side), columns.transpose(1, 2))
    x = torch.matmul(rows[:, None], x.reshape(n, 3, side, view_side))
    return _recolor(x, parameters.pixel_N33, parameters.mean_N33)


# --- geometry ---------------------------------------------------------------------------------


def _draw_box(random: Random, side: int, crop_min: float) -> Tensor:
    """RandomResizedCrop: area uniform, aspect ratio log-uniform in 3/4 to 4/3, ten attempts,
    then the whole image."""
    area = side**2 * (crop_min + (1 - crop_min) * random(10))
    log_ratio = (random(10) * 2 - 1) * torch.log(torch.tensor(4 / 3))
    width = torch.round(torch.sqrt(area * log_ratio.exp()))
    height = torch.round(torch.sqrt(area / log_ratio.exp()))
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    first = fits.int().argmax(1, keepdim=True)  # index of the first attempt that fits
    any_fits = fits.any(1)
    height = torch.where(any_fits, height.gather(1, first)[:, 0], float(side))
    width = torch.where(any_fits, width.gather(1, first)[:, 0], float(side))
    top = torch.floor(random() * (side - height + 1))
    left = torch.floor(random() * (side - width + 1))
    return torch.stack([top, left, height, width], 1)


def _crop_matrix(start_N: Tensor, length_N: Tensor, side: int, view_side: int) -> Tensor:
    """Bilinear resampling of [start, start + length) to V pixels, as matrices (N, V, S).

    Half-pixel centers; pixels outside the crop have no weight, as if the crop were cut out first.
    Smaller views are antialiased: every pixel of a view is a mean over all it covers.
    """
    pixels = torch.arange(side, device=start_N.device, dtype=torch.float32)
    start, length = start_N[:, None], length_N[:, None]
    source = (pixels[:view_side] + 0.5) * (length / view_side) - 0.5  # (N, V) relative to the crop
    source = torch.minimum(source.clamp_min(0), length - 1) + start
    distance = (source[:, :, None] - pixels).abs()  # (N, V, S)
    if view_side == side:
        return (1 - distance).clamp_min_(0)
    reach = (length / view_side).clamp_min(1)[:, :, None]
    inside = (pixels >= start) & (pixels < start + length)
    weights = (1 - distance / reach).clamp_min_(0) * inside[:, None]
    return weights / weights.sum(2, keepdim=True)


def _draw_blur(random: Random, side: int, probability: float) -> Tensor:
    """Kernels (N, T) with T about a tenth of the side, and odd; (N, 1) if nothing is blurred."""
    chosen = random(1) < probability
    sigma = 0.1 + 1.9 * random(1)
    if probability == 0:
        return torch.ones_like(sigma)
    reach = max(1, side // 20)
    taps = torch.arange(-reach, reach + 1.0)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    return torch.where(chosen, kernel / kernel.sum(1, keepdim=True), (taps == 0).float())


def _blur_matrix(kernel_NT: Tensor, side: int) -> Tensor:
    """Convolution with each kernel under reflect padding, as matrices (N, S, S)."""
    reach = kernel_NT.shape[1] // 2
    eye = torch.eye(side, device=kernel_NT.device)
    padded = F.pad(eye[None], (reach, reach), mode="reflect")[0]  # (S in, S + 2 reach)
    taps = padded.unfold(1, side, 1)  # (S in, T, S out)
    matrix = kernel_NT @ taps.permute(1, 2, 0).reshape(kernel_NT.shape[1], -1)
    return matrix.reshape(-1, side, side)


def _draw_affine(
    settings: ViewSettings, views: int, rng: torch.Generator, rows: Tensor | slice
) -> Tensor:
    """Rotation, slant, shift and zoom, each uniform to either side, as matrices (N, 2, 3)."""
    if not any((settings.rotation, settings.shear, settings.shift, settings.zoom)):
        return torch.empty(0, 2, 3)
    angle, slant, shift_x, shift_y, zoom = torch.rand(5, views, generator=rng)[:, rows] * 2 - 1
    angle = angle * settings.rotation * torch.pi / 180
    slant = torch.tan(slant * settings.shear * torch.pi / 180)
    scale = (1 + settings.zoom) ** zoom
    cos, sin = scale * angle.cos(), scale * angle.sin()
    entries = [cos, cos * slant - sin, 2 * settings.shift * shift_x,
               sin, sin * slant + cos, 2 * settings.shift * shift_y]  # fmt: skip
    return torch.stack(entries, 1).reshape(-1, 2, 3)


# --- color -----------------------------------------------------------------------------------


def _draw_color(settings: ViewSettings, random: Random) -> tuple[Tensor, Tensor]:
    """ColorJitter with p = 0.8 in random order, then gray: the two matrices of `ViewParameters`.

    An operation turns the color `pixel @ x + mean @ m`, with m the view's mean color, into
    another of that form. The mean of the whole view has the color `(pixel + mean) @ m`.
    """
    s = settings.jitter

    def factor(reach: float) -> Tensor:
        low = max(0.0, 1 - reach)
        return low + (1 + reach - low) * random()

    eye = torch.eye(3)
    to_gray = _GRAY.expand(3, 3)  # every channel of the result is the luma
    brightness, contrast, saturation = (f[:, None, None] for f in (factor(0.8 * s) for _ in "bcs"))
    hue = (random() * 2 - 1) * 0.2 * s
    operations = torch.stack(  # (4, N, 3, 3): the matrix of each
        [brightness * eye, contrast * eye, saturation * eye + (1 - saturation) * to_gray,
         _hue_matrix(hue)]
    )  # fmt: skip
    views = len(hue)
    order = random(4).argsort(1)
    pixel, mean = eye.repeat(views, 1, 1), torch.zeros(views, 3, 3)
    for kind in order.T:  # (N,): the next operation of every view
        matrix = operations[kind, torch.arange(views)]
        towards_mean = (kind == 1)[:, None, None] * (1 - contrast) * to_gray
        pixel, mean = matrix @ pixel, matrix @ mean + towards_mean @ (pixel + mean)
    jittered = random(1, 1) < 0.8
    pixel, mean = torch.where(jittered, pixel, eye), torch.where(jittered, mean, 0.0)
    gray = random(1, 1) < settings.gray
    return torch.where(gray, to_gray @ pixel, pixel), torch.where(gray, to_gray @ mean, mean)


def _hue_matrix(turn_N: Tensor) -> Tensor:
    """Rotation around the gray axis by `turn` (1 is the full circle), as RGB matrices (N, 3, 3).

    Closer to HSV's hue than a rotation in YIQ: for a tenth of the circle on STL-10, the mean
    difference is 4.3/255 against 7.5/255.
    """
    angle = 2 * torch.pi * turn_N[:, None, None]
    across = torch.eye(3) - 1 / 3  # projects onto the plane of equal brightness
    turned = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    return 1 / 3 + angle.cos() * across + angle.sin() * turned


def _recolor(x_NCSS: Tensor, pixel_N33: Tensor, mean_N33: Tensor) -> Tensor:
    """Apply the color matrices to values from 0 to 255, clamp, normalize."""
    n, _, side, _ = x_NCSS.shape
    x = x_NCSS.reshape(n, 3, side * side)
    offset = mean_N33 @ x.mean(2, keepdim=True)
    x = torch.baddbmm(offset, pixel_N33, x).clamp_(0, 255).reshape(n, 3, side, side)
    mean, std = (channels(values, x.device) * 255 for values in (PIXEL_MEAN, PIXEL_STD))
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
