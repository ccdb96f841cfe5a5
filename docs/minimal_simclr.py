"""SimCLR with frozen batch norm, then K-means: finds the ten kinds of digits without a label.

    python docs/minimal_simclr.py    # a minute on 2 cores, accuracy about 0.95

In the order of Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations", section 2: views, encoder f, projection head g, loss, training. src/ does the same
for pictures of any kind, size and number; a test holds loss, gradients and features equal.

Shape letters: N images, B images in a batch, 2B views, S pixels a side, D features, d projections,
K clusters and classes.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

BATCH, TEMPERATURE, PEAK_RATE = 128, 0.5, 7e-4


def random_views(x_N1SS: Tensor) -> Tensor:
    """A view of every image: turned, slanted, moved, zoomed, blurred, lit differently."""
    turn, slant, right, down, zoom, light, contrast = torch.rand(7, len(x_N1SS)) * 2 - 1
    turn, slant, zoom = turn * math.radians(20), (slant * math.radians(15)).tan(), 1.2**zoom
    cos, sin = zoom * turn.cos(), zoom * turn.sin()
    top = torch.stack([cos, cos * slant - sin, 0.2 * right], 1)
    bottom = torch.stack([sin, sin * slant + cos, 0.2 * down], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(x_N1SS.shape), align_corners=False)
    x = blurred(F.grid_sample(x_N1SS, grid, align_corners=False))
    light, contrast = ((1 + 0.5 * change)[:, None, None, None] for change in (light, contrast))
    mean = x.mean((2, 3), keepdim=True)
    return normalized((light * (mean + contrast * (x - mean))).clamp(0, 1))


def blurred(x_N1SS: Tensor) -> Tensor:
    sigma_N1 = 0.1 + 1.9 * torch.rand(len(x_N1SS), 1)
    taps_N3 = torch.softmax(-0.5 * (torch.arange(-1, 2) / sigma_N1) ** 2, 1)
    kernels_N133 = (taps_N3[:, :, None] * taps_N3[:, None])[:, None]
    x_1NSS = x_N1SS.transpose(0, 1)  # as many channels as images, each with a kernel of its own
    return F.conv2d(x_1NSS, kernels_N133, padding=1, groups=len(x_N1SS)).transpose(0, 1)


def normalized(x_N1SS: Tensor) -> Tensor:
    """Three equal channels (N, 3, S, S), with ImageNet's mean and spread of gray."""
    return ((x_N1SS - 0.45) / 0.225).expand(-1, 3, -1, -1)


class Conv(nn.Conv2d):
    """Weight-standardized: whatever they learn, filters keep zero mean and unit norm, so that the
    frozen statistics of the batch norm behind them keep fitting."""

    def forward(self, x: Tensor) -> Tensor:
        centered = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)).flatten(1)
        weight = F.normalize(centered, dim=1).view_as(self.weight)
        return F.conv2d(x, weight, None, self.stride, self.padding)


def conv_bn(channels: int, out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = Conv(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out, momentum=1.0))  # statistics of the last batch


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.first, self.second = conv_bn(channels, out, 3, stride), conv_bn(out, out, 3, 1)
        self.shortcut = conv_bn(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def encoder() -> nn.Sequential:
    """f: normalized images (N, 3, S, S) to features (N, 256), a small ResNet."""
    stem = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Block(64, 64, 1), Block(64, 128, 2), Block(128, 256, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def projection_head() -> nn.Sequential:
    """g: features (N, 256) to projections (N, 128)."""
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 128))


def nt_xent(z_2Bd: Tensor, temperature: float) -> Tensor:
    """The loss, equation 1: rows i and i + B, views of one image, pick each other among all."""
    z = F.normalize(z_2Bd, dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-math.inf)  # no view picks itself
    return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))


@torch.no_grad()
def freeze_batch_norm(f: nn.Module, x_N3SS: Tensor) -> None:
    """Measure the statistics on all images, and keep them while everything else learns on."""
    f(x_N3SS)
    f.eval()


def train(x_N1SS: Tensor, epochs: int) -> nn.Module:
    """Algorithm 1: returns f and throws g away."""
    f, g = encoder(), projection_head()
    parameters, steps = [*f.parameters(), *g.parameters()], len(x_N1SS) // BATCH
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-4)
    schedule = OneCycleLR(optimizer, PEAK_RATE, epochs * steps, pct_start=0.2, cycle_momentum=False)
    for epoch in range(epochs):
        if epoch == max(1, epochs // 5):  # the end of the warm-up
            freeze_batch_norm(f, random_views(x_N1SS))
        for rows_B in torch.randperm(len(x_N1SS)).split(BATCH)[:steps]:
            loss = nt_xent(g(f(random_views(x_N1SS[rows_B.repeat(2)]))), TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2}/{epochs}  loss {loss.item():.3f}", flush=True)
    return f


@torch.no_grad()
def features(f: nn.Module, x_N3SS: Tensor) -> np.ndarray:
    """(N, D), rows of length 1."""
    return F.normalize(f(x_N3SS), dim=1).numpy()


def accuracy(labels_N: np.ndarray, clusters_N: np.ndarray) -> float:
    """Share of images right under the best one-to-one matching of clusters and classes."""
    counts_KK = confusion_matrix(labels_N, clusters_N)
    return counts_KK[linear_sum_assignment(counts_KK, maximize=True)].sum() / len(labels_N)


def main(epochs: int = 20) -> None:
    torch.manual_seed(0)
    pixels_N88, labels_N = load_digits(return_X_y=True)
    x_N1SS = torch.tensor(pixels_N88 / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    x_N1SS = F.interpolate(x_N1SS, size=16, mode="bicubic", align_corners=False)
    x_N1SS = F.pad(x_N1SS.clamp(0, 1), (2, 2, 2, 2))
    h_ND = features(train(x_N1SS, epochs), normalized(x_N1SS))
    clusters_N = KMeans(10, n_init=20, random_state=0).fit_predict(h_ND)  # type: ignore[arg-type]
    print(f"accuracy {accuracy(labels_N, clusters_N):.3f}")


if __name__ == "__main__":
    main()
