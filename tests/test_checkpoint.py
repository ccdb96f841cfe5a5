"""Checkpoints under attack: truncated, flipped, empty, foreign, hostile."""

import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import torch

from src.runtime.cli import RunError, UserError
from src.storage import checkpoint
from src.storage.checkpoint import BadCheckpoint
from src.training.flags import CHOSEN, TrainConfig, ViewSettings, flag_values

FLAGS = flag_values(TrainConfig(dataset="digits"))
STATE = {
    "epoch": 3, "step": 30, "model": {"w": torch.arange(5000.0)},
    "config": FLAGS | {"a": [1, "b"]},
    "dataset": {"fingerprint": "?", "image_size": 32}, "tracking": {"group": "", "run_id": None},
}  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    file = tmp_path / checkpoint.file_name(3)
    checkpoint.save(file, STATE)
    return file


def test_comes_back_as_it_was(saved: Path) -> None:
    state = checkpoint.load(saved)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert state["config"] == STATE["config"]
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("tenth", range(10))
def test_truncated(saved: Path, tenth: int) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) * tenth // 10])
    with pytest.raises(BadCheckpoint, match=r"empty|truncated"):
        checkpoint.load(saved)


@pytest.mark.parametrize("tenth", range(10))
def test_one_flipped_bit(saved: Path, tenth: int) -> None:
    """In the tensor's bytes, where loading it would go unnoticed."""
    content = bytearray(saved.read_bytes())
    start = content.index(STATE["model"]["w"].numpy().tobytes())
    content[start + 2000 * tenth + 7] ^= 4
    saved.write_bytes(content)
    with pytest.raises(BadCheckpoint, match="damaged"):
        checkpoint.load(saved)


class Hostile:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    file, trace = tmp_path / checkpoint.file_name(1), tmp_path / "ran"
    torch.save({"format": checkpoint.FORMAT, "model": Hostile(trace)}, file)
    with pytest.raises(BadCheckpoint, match="refused"):
        checkpoint.load(file)
    file.write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(BadCheckpoint):
        checkpoint.load(file)
    assert not trace.exists()


def shared(part: object, wide: int, deep: int) -> object:
    for _ in range(deep):
        part = [part] * wide
    return part


SOME = torch.zeros(10_000)
HUGE = torch.zeros(()).expand(10**13)
CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "more",
    [
        {"totals": shared(0.5, 12, 8)},
        {"config": FLAGS | {"a": shared(1, 2, 60)}},
        {"config": FLAGS | {"a": [("x" * 1000, 1)] * 1000}},
        {"model": {"w": HUGE}},
        {"model": {str(i): SOME[i:] for i in range(99)}},
        {"optimizer": CYCLE},
    ],
)
def test_work_is_bounded_by_the_bytes_of_the_file(more: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / checkpoint.file_name(1)
    torch.save({"format": checkpoint.FORMAT, **STATE, **more}, file)
    with pytest.raises(BadCheckpoint, match="holds itself, or a part again and again"):
        checkpoint.load(file)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_other_numbers_than_the_networks_are_refused(saved: Path, dtype: torch.dtype) -> None:
    network = torch.nn.Linear(2, 2)
    weights = {name: x.to(dtype) for name, x in network.state_dict().items()}
    with pytest.raises(BadCheckpoint, match=f"weight is {dtype}"):
        checkpoint.load_into(network, weights, saved)


def test_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    file = tmp_path / checkpoint.file_name(1)
    torch.save({"state_dict": {"w": torch.zeros(3)}}, file)
    with pytest.raises(BadCheckpoint, match="not a checkpoint of this project"):
        checkpoint.load(file)


@pytest.mark.parametrize("setting", sorted({*dataclasses.asdict(ViewSettings()), *CHOSEN}))
def test_settings_that_nobody_could_use_again_are_named(tmp_path: Path, setting: str) -> None:
    file = tmp_path / checkpoint.file_name(1)
    checkpoint.save(file, {**STATE, "config": FLAGS | {setting: []}})
    with pytest.raises(BadCheckpoint, match=rf"config\.{setting}"):
        checkpoint.load(file)


def test_newest_whole_one_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [checkpoint.file_name(*at) for at in [(2, None), (10, None), (10, 205), (11, None)]]
    for i, name in enumerate(names):
        checkpoint.save(tmp_path / name, {**STATE, "step": i})
    assert [p.name for p in checkpoint.listed(tmp_path)] == names
    (tmp_path / names[3]).write_bytes(b"")
    (tmp_path / "simclr_epoch_latest.pt").write_text("not ours to look at")
    assert checkpoint.Newest(tmp_path).use(lambda _, state: state["step"]) == 2
    assert names[3] in capsys.readouterr().err


def test_none_usable_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert checkpoint.Newest(tmp_path).use(pytest.fail) is None
    (tmp_path / checkpoint.file_name(4)).write_bytes(b"PK")
    with pytest.raises(UserError, match="--fresh"):
        checkpoint.Newest(tmp_path).use(pytest.fail)


@pytest.mark.parametrize("bad", [float("nan"), torch.tensor([1.0, float("inf")])])
def test_nothing_that_is_not_finite_is_saved(saved: Path, bad: object) -> None:
    before = saved.read_bytes()
    with pytest.raises(RunError, match=r"model\.head|head"):
        checkpoint.save(saved, {**STATE, "model": {"layers": [{"head": bad}]}})
    assert saved.read_bytes() == before


def test_a_log_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    log = tmp_path / checkpoint.METRICS_LOG
    log.write_text('{"loss": 3}\n')
    with pytest.raises(UserError, match=r"choose another --checkpoint-dir"):  # noqa: SIM117
        with checkpoint.training_in(tmp_path):
            pytest.fail("it may not write")
    log.unlink()
    for _ in range(2):  # that of an earlier run is
        with checkpoint.training_in(tmp_path):
            log.touch()


def test_keeps_the_last_and_the_untrained_network(tmp_path: Path) -> None:
    for epoch in (0, 4, 8, 12):
        checkpoint.save(tmp_path / checkpoint.file_name(epoch), STATE)
    checkpoint.save(tmp_path / checkpoint.file_name(13, 99), STATE)
    newest = tmp_path / checkpoint.file_name(16)
    checkpoint.save(newest, STATE)
    checkpoint.prune(tmp_path, newest, keep=2)
    left = [p.name for p in checkpoint.listed(tmp_path)]
    assert left == [checkpoint.file_name(epoch) for epoch in (0, 12, 16)]
