"""The training step, its guards, and what a run writes."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from src.feature_extraction import main as extract
from src.features.flags import ExtractionConfig
from src.models.architectures import ARCHITECTURES
from src.runtime.cli import RunError, UserError
from src.runtime.device import DTYPES
from src.storage import checkpoint
from src.train import main
from src.training import health, loop, setup, state
from src.training.flags import TrainConfig, ViewSettings
from src.training.loop import learning_rate, loss_of, train_step
from src.training.setup import prepare
from src.training.state import calibrate, make_optimizer, make_scaler, random_state
from tests.helpers.counted_reads import count_reads
from tests.helpers.operations import Operations
from tests.helpers.small_network import SMALL

ARCHITECTURES["small"] = SMALL


@pytest.fixture
def config(stl10_dir: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data_dir=stl10_dir, checkpoint_dir=tmp_path / "checkpoints", arch="small", epochs=1,
        batch_size=16, warmup_epochs=0, precision="fp32", log_every=1, wandb="disabled",
        monitor_every=1, device="cpu",
    )  # fmt: skip


def records(config: TrainConfig, kind: str) -> list[dict[str, Any]]:
    lines = (config.checkpoint_dir / checkpoint.METRICS_LOG).read_text().splitlines()
    return [r for line in lines if (r := json.loads(line))["kind"] == kind]


def saved(config: TrainConfig, epoch: int) -> dict[str, Any]:
    return checkpoint.load(config.checkpoint_dir / checkpoint.file_name(epoch))


def assert_same_model(first: TrainConfig, second: TrainConfig, epoch: int) -> None:
    ours, theirs = (saved(config, epoch)["model"] for config in (first, second))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_finite(state: dict[str, Any]) -> None:
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_batch_norm_is_frozen_when_the_warm_up_ends(config: TrainConfig) -> None:
    main(config := replace(config, epochs=2, warmup_epochs=1, checkpoint_every=1))
    states = [saved(config, epoch)["model"] for epoch in range(3)]
    for name in states[0]:
        first, warm, last = (state[name] for state in states)
        assert "num_batches" in name or not torch.equal(first, warm), name
        assert torch.equal(warm, last) == ("running" in name or "num_batches" in name), name
    after, epoch = saved(config, 2), records(config, "epoch")[1]
    assert after["epoch"] == 2
    steps = records(config, "step")
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6]
    assert after["loss"] == epoch["loss"] == pytest.approx(sum(r["loss"] for r in steps[3:]) / 3)
    assert 0 < epoch["knn_accuracy"] <= 1
    assert 0.1 <= epoch["kmeans_accuracy"] <= 1


def test_no_epochs_are_the_beginning_of_any_training(config: TrainConfig) -> None:
    config = replace(config, train_on=("unlabeled",))
    other = replace(config, checkpoint_dir=config.checkpoint_dir / "direct")
    main(other)
    main(replace(config, epochs=0))
    assert checkpoint.listed(config.checkpoint_dir)[-1].name == checkpoint.file_name(0)
    main(config)
    for epoch in range(2):
        assert_same_model(config, other, epoch)


def test_no_epochs_need_no_full_batch(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    main(config := replace(config, epochs=0, batch_size=256))
    assert saved(config, 0)["config"]["batch_size"] == 256
    text = capsys.readouterr().out
    assert "nothing was trained" in text
    assert "to train on" not in text
    with pytest.raises(UserError, match="--batch-size 256 x --accumulate 1 is more than the 60"):
        main(replace(config, epochs=1))


def test_labels_change_nothing(config: TrainConfig, stl10_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "relabeled" / "stl10_binary"
    other.mkdir(parents=True)
    for file in (stl10_dir / "stl10_binary").iterdir():
        content = file.read_bytes()
        (other / file.name).write_bytes(content[::-1] if "_y" in file.name else content)
    relabeled = replace(config, data_dir=other.parent, checkpoint_dir=tmp_path / "other")
    main(config)
    main(relabeled)
    assert_same_model(config, relabeled, 1)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.004)])
def test_first_loss_does_not_depend_on_the_precision(
    config: TrainConfig, precision: Any, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "CALIBRATION_IMAGES", 32)
    config = replace(config, dataset="digits", batch_size=8)  # float16 is slow on a CPU

    def first_loss(config: TrainConfig) -> float:
        setup = prepare(config)
        fresh = random_state(setup)
        calibrate(fresh, setup)
        return loss_of(fresh.model, setup.batches.load(0)[0], config, setup.dtype).item()

    exact = first_loss(config)
    assert 0.5 * math.log(15) < exact < 1.5 * math.log(15)
    assert prepare(replace(config, precision="auto")).config.precision in DTYPES
    assert first_loss(replace(config, precision=precision)) == pytest.approx(exact, rel=tolerance)


def test_fp16_scales_its_gradients_and_the_others_do_not() -> None:
    cpu = torch.device("cpu")
    assert make_scaler(cpu, torch.float16).get_scale() > 1
    assert make_scaler(cpu, torch.bfloat16).get_scale() == 1


def test_the_statistics_count_every_image_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts count the same whatever their size, so none may be smaller than the others."""
    sizes: list[int] = []
    monkeypatch.setattr(state, "calibrate_batch_norm", lambda _, x: sizes.extend(map(len, x)))
    setup = prepare(config)
    monkeypatch.setattr(type(setup.batches.store), "__len__", lambda _: 257)
    monkeypatch.setattr(type(setup.batches.store), "views", lambda _, indices, *__: indices)
    calibrate(random_state(setup), setup)
    assert sizes == [129, 128]


def plant_nan(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    real, calls = loop.make_views, iter(range(10**6))

    def planted(*arguments: Any) -> torch.Tensor:
        views = real(*arguments)
        return views * float("nan") if next(calls) in at else views

    monkeypatch.setattr(loop, "make_views", planted)


def test_a_nan_is_survived(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_nan(monkeypatch, {1})
    assert main(config) == 0
    epoch = records(config, "epoch")[0]
    losses = [r["loss"] for r in records(config, "step")]
    assert epoch["skipped_steps"] == 1
    assert losses[1] is None
    assert saved(config, 1)["scaler"]["scale"] == 1
    assert epoch["loss"] == pytest.approx((losses[0] + losses[2]) / 2)
    assert_finite(saved(config, 1))


def test_nans_in_a_row_stop_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_nan(monkeypatch, set(range(2, 10**4)))
    with pytest.raises(RunError, match="not finite"):
        main(replace(config, epochs=8, checkpoint_every=2))
    assert_finite(checkpoint.load(checkpoint.listed(config.checkpoint_dir)[-1]))


def test_a_network_whose_output_is_not_finite_stops_the_run(config: TrainConfig) -> None:
    fresh = random_state(setup := prepare(config))
    with torch.no_grad():
        fresh.model.backbone.conv1.weight.fill_(float("inf"))
    with pytest.raises(RunError, match=r"no longer finite; start over \(--fresh\)"):
        health.output_statistics(fresh.model, torch.zeros(4, 3, 32, 32), setup.dtype)


def test_accumulated_gradient_is_the_mean(config: TrainConfig) -> None:
    """Two batches of 8 in a step: the mean of their gradients, each with its own negatives."""
    config = replace(config, batch_size=8, accumulate=2, clip_norm=1e9)
    setup = prepare(config)
    batches = setup.batches.load(0)
    assert [len(b.images_BCSS) for b in batches] == [8, 8]

    def gradients(parts: list[Any]) -> list[torch.Tensor]:
        fresh = random_state(setup)
        grabbed: list[torch.Tensor] = []
        fresh.optimizer.register_step_pre_hook(
            lambda *_: grabbed.extend(p.grad.clone() for p in fresh.model.parameters())
        )
        train_step(fresh.model, fresh.optimizer, fresh.scaler, parts, config, setup.dtype)
        return grabbed

    both = gradients(batches)
    apart = (gradients(batches[:1]), gradients(batches[1:]))
    for together, one, two in zip(both, *apart, strict=True):
        torch.testing.assert_close(together, (one + two) / 2, rtol=1e-3, atol=1e-5)


def test_a_step_never_waits_for_the_device(config: TrainConfig) -> None:
    setup = prepare(replace(config, precision="bf16"))
    fresh = random_state(setup)
    batches = setup.batches.load(0)
    with Operations() as operations:
        loss, norm = train_step(
            fresh.model, fresh.optimizer, fresh.scaler, batches, config, setup.dtype
        )
        fresh.totals.add(loss, norm)
    assert {"convolution", "convolution_backward", "bmm", "_fused_adamw_"} <= operations.names
    # A number read, a tensor made of Python's numbers, a size that depends on values.
    waits = {"_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "unique"}
    assert not waits & operations.names


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")  # PyTorch's
def test_compiled_training_is_the_same(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = replace(config, epochs=2, warmup_epochs=1, learning_rate=1e-5, monitor_every=9)
    main(own)
    counters = torch._dynamo.utils.counters
    counters.clear()

    def backend(graph: Any, inputs: list[Any]) -> Any:
        """Captured as on a GPU, forward and backward, but run without a compiler's minutes."""
        assert not any(isinstance(x, torch.SymInt) for x in inputs)  # slower than fixed sizes
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    other = replace(own, compile="on", checkpoint_dir=tmp_path / "compiled")
    main(other)
    expected, compiled = ([record["loss"] for record in records(c, "step")] for c in (own, other))
    assert len(compiled) == 6
    assert counters["stats"]["unique_graphs"] >= 2  # before and after freezing
    assert not counters["graph_break"]
    assert compiled == pytest.approx(expected, abs=1e-4)


def test_schedule_and_weight_decay() -> None:
    rates = [learning_rate(s, 100, 10, 1.0) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert max(rates) == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    decayed, kept = make_optimizer(model, 0.1).param_groups
    assert [p.shape for p in decayed["params"]] == [(3, 2)]
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert len(kept["params"]) == 3


def test_resuming_refuses_what_would_make_another_run(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    main(config)
    for flag, was, now in (("temperature", 0.2, 0.5), ("precision", "fp32", "bf16")):
        with pytest.raises(UserError, match=rf"--{flag} {was} \(now {now}\)"):
            main(replace(config, **{flag: now}))
    assert main(replace(config, epochs=2)) == 0
    assert "3 of 6 steps" in capsys.readouterr().out
    with pytest.raises(UserError, match="saved after 6 steps, but --epochs 1 is only 3"):
        main(config)
    assert main(replace(config, temperature=0.5, fresh=True)) == 0
    (aside,) = (p for p in config.checkpoint_dir.iterdir() if p.is_dir())
    assert {p.name for p in aside.iterdir()} > {checkpoint.METRICS_LOG, checkpoint.file_name(2)}
    assert saved(config, 1)["config"]["temperature"] == 0.5


def test_resuming_reads_each_checkpoint_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a damaged one, and with flags that are taken from the checkpoint."""
    config = replace(config, dataset="digits", arch="resnet8", image_size=20, epochs=0)
    main(config)
    whole = config.checkpoint_dir / checkpoint.file_name(0)
    damaged = config.checkpoint_dir / checkpoint.file_name(1)
    damaged.write_bytes(whole.read_bytes()[:-9])
    sizes = {file.name: file.stat().st_size for file in (whole, damaged)}
    counts = count_reads(monkeypatch)
    capsys.readouterr()
    assert main(replace(config, batch_size=None)) == 0  # type: ignore[arg-type]
    outputs = capsys.readouterr()
    assert f"resuming from {whole}" in outputs.out
    assert outputs.err.count(f"skipped: {damaged}") == 1
    assert counts == sizes


def test_a_checkpoint_without_newer_flags_has_their_defaults(
    config: TrainConfig, tmp_path: Path
) -> None:
    main(config)
    older = saved(config, 1)
    for name in ("bn", "shear", "clip_norm"):
        del older["config"][name]
    checkpoint.save(config.checkpoint_dir / checkpoint.file_name(1), older)
    extract(ExtractionConfig(checkpoint_dir=config.checkpoint_dir, feature_dir=tmp_path / "f"))
    assert (tmp_path / "f" / "train_views.npy").exists()
    with pytest.raises(UserError, match=r"--shear 0.0 \(now 5.0\)"):
        main(replace(config, views=ViewSettings(shear=5.0)))
    assert main(replace(config, epochs=2)) == 0


def test_a_flag_that_no_longer_exists_is_refused_if_it_was_used(config: TrainConfig) -> None:
    main(replace(config, epochs=0))
    older = saved(config, 0)
    for value in (0.0, 9.0):
        older["config"] |= {"low_resolution_epochs": value, "low_resolution": 48}
        checkpoint.save(config.checkpoint_dir / checkpoint.file_name(0), older)
        if not value:
            assert main(replace(config, epochs=0)) == 0
    with pytest.raises(UserError, match=r"--low-resolution-epochs 9.0 \(a flag that no longer"):
        main(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": -1}, "--epochs"),
        ({"views": ViewSettings(crop_min=0.0)}, "--crop-min"),
        ({"views": ViewSettings(jitter=-1)}, "--jitter must be 0 or more"),
        ({"warmup_epochs": math.nan}, "--warmup-epochs must be 0 or more"),
        ({"seed": 2**32}, "--seed 4294967296: it must be from 0 to 4294967295"),
        ({"train_on": ("nowhere",)}, "--train-on"),
    ],
)
def test_what_cannot_be_is_refused(
    config: TrainConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main(replace(config, **changes))


def test_stl10_is_downloaded_only_where_nobody_keeps_pictures(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(setup, "get_stl10", asked.append)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no STL-10 images in dataset"):  # as nothing arrived
        main(replace(config, data_dir=TrainConfig.data_dir))
    assert asked == [TrainConfig.data_dir]
    (tmp_path / "dataset" / "holidays").mkdir(parents=True)
    (tmp_path / "dataset" / "holidays" / "1.JPG").touch()
    for data_dir in (TrainConfig.data_dir, tmp_path, Path("nowhere")):
        with pytest.raises(UserError, match=r"add --dataset folder .*or download STL-10"):
            main(replace(config, data_dir=data_dir))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("loss", "std", "expected"),
    [
        (6.23, 0.05, "random guesses"),
        (4.0, 0.001, "hardly differ"),
        (4.0, 0.05, None),
        (None, 0.05, None),
    ],
)
def test_collapse_is_reported(loss: float | None, std: float, expected: str | None) -> None:
    line = health.collapse({"loss": loss, "projection_std": std}, 256, 128)
    assert (expected in line) if expected and line else line is expected
