"""docs/minimal_simclr.py does what the product does, and runs alone."""

import ast
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from docs import minimal_simclr as minimal
from src.evaluation.metrics import hungarian_accuracy
from src.models.batch_norm import calibrate_batch_norm
from src.models.encoder import encode
from src.models.simclr import SimCLR, nt_xent
from src.training.batches import paired_views
from src.training.flags import TrainConfig
from tests.helpers import ROOT
from tests.helpers.digits import digits

DIGITS = TrainConfig.for_dataset("digits")


@pytest.fixture
def views_2BCSS() -> Tensor:
    """Two views of 32 digits, as training makes them, float64."""
    return next(paired_views(digits(), DIGITS.views, torch.device("cpu"))).double()


@pytest.fixture
def networks() -> tuple[SimCLR, nn.Sequential]:
    """The product's network and the minimal one, with the same weights, float64."""
    torch.manual_seed(0)
    product = SimCLR(DIGITS.arch).double().train()
    f, g = minimal.encoder(), minimal.projection_head()
    for own, theirs in ((f, product.backbone), (g, product.head)):
        values = theirs.state_dict().values()
        own.load_state_dict(dict(zip(own.state_dict(), values, strict=True)))
    return product, nn.Sequential(f, g).double()


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def assert_same_training(product: SimCLR, own: nn.Sequential, views_2BCSS: Tensor) -> None:
    """Loss and every gradient."""
    product.zero_grad()
    own.zero_grad()
    expected = nt_xent(product(views_2BCSS), DIGITS.temperature)
    loss = minimal.nt_xent(own(views_2BCSS), minimal.TEMPERATURE)
    assert_same(loss, expected)
    expected.backward()
    loss.backward()
    for ours, theirs in zip(own.parameters(), product.parameters(), strict=True):
        assert theirs.grad is not None
        assert ours.grad is not None
        assert_same(ours.grad, theirs.grad)


def test_the_same_loss_gradients_and_features_before_and_after_freezing(
    networks: tuple[SimCLR, nn.Sequential], views_2BCSS: Tensor
) -> None:
    product, own = networks
    assert_same_training(product, own, views_2BCSS)

    calibrate_batch_norm(product.backbone, [views_2BCSS])
    product.backbone.freeze()
    minimal.freeze_batch_norm(own[0], views_2BCSS)
    for mine, theirs in zip(own.buffers(), product.buffers(), strict=True):
        if theirs.is_floating_point():
            assert_same(mine, theirs)
    # On others than the statistics are of.
    assert_same_training(product, own, views_2BCSS[32:] * 1.5)
    fixed = {name: value.clone() for name, value in own.named_buffers()}
    own[0](views_2BCSS * 2)
    assert all(value.equal(fixed[name]) for name, value in own.named_buffers())

    expected = encode(product.backbone.eval(), views_2BCSS, torch.float32).numpy()
    h_ND = minimal.features(own[0], views_2BCSS)
    np.testing.assert_allclose(
        h_ND, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5, atol=1e-6
    )


def test_views_stay_digits() -> None:
    torch.manual_seed(0)
    x_N1SS = torch.from_numpy(digits()[:200, :1]).float() / 255
    first, second = (minimal.random_views(x_N1SS) for _ in range(2))
    blank = minimal.normalized(torch.zeros(1, 1, 20, 20))
    assert first.shape == (200, 3, 20, 20)
    assert first.min() >= blank.max()
    assert first.max() <= minimal.normalized(torch.ones(1, 1, 20, 20)).max()
    assert not first.isclose(second).flatten(1).all(1).any()
    similar = torch.corrcoef(torch.cat([first, second]).flatten(1))[:200, 200:]
    others = similar[~torch.eye(200, dtype=torch.bool)]
    assert similar.diagonal().mean() > others.mean() + 0.1


def test_accuracy_is_that_of_the_product() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 10, (2, 500))
    assert minimal.accuracy(labels, clusters) == pytest.approx(hungarian_accuracy(labels, clusters))


def test_it_runs(capsys: pytest.CaptureFixture) -> None:
    minimal.main(epochs=2)
    first, second, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"epoch  1/2  loss \d\.\d{3}", first)
    assert float(second.split()[-1]) < float(first.split()[-1])
    assert 0.6 < float(last.removeprefix("accuracy ")) < 1


def test_it_is_one_short_file_that_needs_no_other() -> None:
    text = (ROOT / "docs/minimal_simclr.py").read_text()
    assert len(text.splitlines()) <= 150
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(str(node.module).split(".")[0])
    assert modules == {"math", "numpy", "scipy", "sklearn", "torch"}
