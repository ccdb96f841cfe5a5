"""Copies that Pillow made are found among random textures, and nothing else is."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import src.evaluation.near_duplicates as copies_of_pictures
from dataset.load_dataset import load_dataset
from src.evaluation.near_duplicates import crossing, near_duplicates


def textures(count: int, seed: int, side: int = 96) -> list[Image.Image]:
    """Colored noise whose amplitude falls with the frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]) * side
    noise = np.fft.fft2(rng.normal(size=(count, 3, side, side))) / np.maximum(frequency, 1) ** 1.8
    values = np.fft.ifft2(noise).real
    values = 128 + 45 * values / values.std(axis=(2, 3), keepdims=True)
    return [Image.fromarray(x.transpose(1, 2, 0)) for x in values.clip(0, 255).astype(np.uint8)]


def altered(picture: Image.Image, rng: np.random.Generator, mirrored: bool) -> Image.Image:
    """Cropped to 95 to 100 %, half to twice the size, brighter or darker, JPEG of 30 to 90."""
    side = picture.width * rng.uniform(0.95, 1)
    x, y = rng.uniform(0, picture.width - side, 2)
    pixels = round(side * 2 ** rng.uniform(-1, 1))
    copy = picture.resize((pixels, pixels), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
    copy = ImageEnhance.Brightness(copy).enhance(rng.uniform(0.9, 1.1))
    stream = io.BytesIO()
    (ImageOps.mirror(copy) if mirrored else copy).save(
        stream, "JPEG", quality=int(rng.integers(30, 91))
    )
    return Image.open(stream)


def arrays(pictures: list[Image.Image], side: int = 96) -> np.ndarray:
    images = [p.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for p in pictures]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


@pytest.mark.parametrize("side", [96, 45])
def test_altered_copies_are_found_and_nothing_else(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_of_pictures, "BLOCK", 64)
    rng = np.random.default_rng(1)
    originals = textures(150, seed=0)
    copies = [altered(originals[i], rng, mirrored=i % 2 == 0) for i in range(20)]
    copies += [altered(originals[0], rng, mirrored=True)]  # a group of three
    splits = {"unlabeled": arrays(originals[:100], side), "train": arrays(originals[100:], side)}
    splits["test"] = arrays(copies, side)
    groups = near_duplicates(splits)
    assert {split: len(x) for split, x in groups.items()} == {s: len(x) for s, x in splits.items()}
    first, copied = groups["unlabeled"], groups["test"]
    found = copied >= 0
    assert found.sum() >= 20  # of 21: a floor and no promise
    assert (copied[found] == first[[*range(20), 0]][found]).all()
    assert (first[:20] >= 0).sum() == len(np.unique(copied[found])) == crossing(groups)
    assert copied[0] == copied[20] == 0
    assert (first[20:] == -1).all()
    assert groups["train"].tolist() == [-1] * 50
    assert crossing({"train": np.array([0, 0, -1]), "test": np.array([1, -1, 1])}) == 0


def test_similar_digits_are_no_copies_but_mirrored_ones_are() -> None:
    digits = load_dataset("digits", Path()).splits["test"].images[:120]
    for count in (40, 120):
        assert (near_duplicates({"test": digits[:count]})["test"] == -1).all()
    groups = near_duplicates({"train": digits, "test": digits[:3, :, :, ::-1]})
    assert groups["test"].tolist() == groups["train"][:3].tolist() == [0, 1, 2]


def tinted(pictures: np.ndarray, contrast: float, red: float, blue: float) -> np.ndarray:
    pale = 100 + contrast * (pictures.astype(float) - 128)
    return (pale + np.array([red, 0, blue])[:, None, None]).clip(0, 255).astype(np.uint8)


def test_the_same_picture_in_other_colors_is_no_copy() -> None:
    pictures = tinted(arrays(textures(6, seed=3)), 0.5, 0, 0)
    splits = {"train": pictures, "test": pictures + np.uint8([30, 0, 256 - 30])[:, None, None]}
    assert (np.abs(pictures.mean(1) - splits["test"].mean(1)) < 1e-9).all()
    assert all((numbers == -1).all() for numbers in near_duplicates(splits).values())


def test_a_brighter_picture_of_one_strong_color_is_a_copy() -> None:
    pictures = tinted(arrays(textures(6, seed=3)), 0.3, 120, 0)
    bright = (pictures * 1.1).clip(0, 255).astype(np.uint8)
    groups = near_duplicates({"train": pictures, "test": bright})
    assert groups["test"].tolist() == groups["train"].tolist() == list(range(6))


@pytest.mark.parametrize(("pictures", "copies"), [(40, 2), (15, 7), (4, 30)])
def test_every_picture_has_altered_copies(pictures: int, copies: int) -> None:
    rng, originals = np.random.default_rng(0), textures(pictures, seed=4)
    train = [altered(p, rng, mirrored=i % 2 == 0) for p in originals for i in range(copies)]
    groups = near_duplicates({"train": arrays(train, 45), "test": arrays(originals, 45)})
    found = groups["train"] == groups["test"].repeat(copies)
    assert found.mean() >= 0.95
    assert (groups["test"] >= 0).all()
    assert len(np.unique(groups["test"])) == pictures


def test_many_copies_of_one_picture_hide_no_others() -> None:
    rng, originals = np.random.default_rng(2), textures(41, seed=6)
    copies = [altered(p, rng, mirrored=False) for p in originals[:20]]
    placeholders = arrays(originals[40:], 45).repeat(60, axis=0)
    train, test = arrays(originals[:40], 45), arrays(copies, 45)
    groups = near_duplicates({"train": train, "test": test, "unlabeled": placeholders})
    found = groups["test"] >= 0
    assert found.mean() >= 0.9
    assert (groups["test"] == groups["train"][:20])[found].all()
    assert (groups["train"][20:] == -1).all()
    assert len(np.unique(groups["unlabeled"])) == 1
    assert groups["unlabeled"][0] not in {-1, *groups["train"]}


def test_copies_among_similar_digits_leave_the_rule_strict() -> None:
    digits = load_dataset("digits", Path()).splits["test"].images[:120]
    splits = {"train": digits, "unlabeled": digits[:1].repeat(200, axis=0)}
    groups = near_duplicates(splits)
    assert groups["train"].tolist() == [0] + [-1] * 119
    assert not groups["unlabeled"].any()


def test_pictures_of_one_color_and_a_single_picture() -> None:
    flat = np.full((4, 3, 16, 16), 255, np.uint8)
    flat[2:] = 7
    assert near_duplicates({"train": flat})["train"].tolist() == [-1] * 4
    assert near_duplicates({"train": flat[:1]})["train"].tolist() == [-1]
    assert crossing({"train": np.array([-1])}) == 0
