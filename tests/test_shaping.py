"""A person shapes the groups on the page, in a real browser."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster

from docs.make_pictures import READY
from src.visualization.results import load_results
from tests.helpers.browser import CONTEXTS, OpenReport, Report, draw_report
from tests.helpers.digits import digits, save_picture
from tests.helpers.pixel_run import pixel_run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of 400 pictures without labels."""
    root = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(digits("train")[:400]):
        save_picture(image, root / f"pictures/{i:03d}.png")
    pixel_run(root / "results", "folder", root / "pictures")
    draw_report(root / "results")
    return root / "results"


@pytest.fixture(params=CONTEXTS.values(), ids=CONTEXTS)
def shaping(open_report: OpenReport, photos: Path, request: pytest.FixtureRequest) -> Report:
    return open_report(photos, **request.param)


def branches(directory: Path, count: int) -> list[list[int]]:
    """The fine clusters of each of so many branches, in the order of the tree, as SciPy cuts it."""
    group = fcluster(load_results(directory).fine_tree, count, "maxclust")
    return [np.flatnonzero(group == g).tolist() for g in dict.fromkeys(group.tolist())]


def choose_groups(report: Report, count: int) -> None:
    report.page.fill("#branches", str(count))
    report.until(f"document.querySelectorAll('.naming').length === {count}")


def name_row(report: Report, row: int, name: str) -> None:
    report.page.fill(f".naming >> nth={row} >> input[type=text]", name)
    report.page.keyboard.press("Tab")


def said(report: Report) -> dict[str, dict[str, str]]:
    content = json.loads(report.downloaded("#save-names"))
    content.pop("version", None)
    return content


def told(report: Report) -> str:
    return report.page.inner_text("#told")


def reload(report: Report) -> None:
    """A new process of a busy browser may see storage as it was a moment ago."""
    stored = "localStorage.getItem(STORED)"
    before = report.js(stored)
    for _ in range(5):
        report.page.reload()
        report.js(READY)
        if report.js(stored) == before:
            return


def pictures_of_row(report: Report, row: int) -> list[int]:
    grid = report.page.locator(".naming").nth(row).locator(".thumb")
    return [int(thumb.get_attribute("data-image")) for thumb in grid.all()]


@pytest.mark.parametrize("count", [30, 2, 50])
def test_groups_are_branches_in_the_order_of_the_tree(
    open_report: OpenReport, photos: Path, count: int
) -> None:
    report, results = open_report(photos), load_results(photos)
    choose_groups(report, count)
    assert report.page.inner_text("#branches-shown") == str(count)
    sizes = [int(np.isin(results.fine, fine).sum()) for fine in branches(photos, count)]
    rows = "#groups .row:has(input[id^=group-]) .count"
    assert list(map(int, report.page.locator(rows).all_text_contents())) == sizes
    for row, fine in enumerate(branches(photos, count)):
        assert {int(results.fine[i]) for i in pictures_of_row(report, row)} <= {*fine}
    report.page.click("#as-clustered")
    assert report.page.locator(rows).count() == 10


def test_a_person_shapes_400_pictures(open_report: OpenReport, photos: Path) -> None:
    report, results = open_report(photos), load_results(photos)
    page = report.page
    choose_groups(report, 30)
    tree, expected = branches(photos, 30), {}
    for row in range(12):
        name_row(report, row, f"kind {row % 11}")  # the last one joins the first
        expected |= {str(f): f"kind {row % 11}" for f in tree[row]}
    assert told(report) == f"{len(expected)} changes not downloaded"
    assert page.locator("#groups .row:has(input[id^=group-])").count() == 29

    for row in (20, 22):
        page.check(f".naming >> nth={row} >> input[type=checkbox]")
    page.fill("#merged-name", "merged")
    page.click("#merge")
    expected |= {str(f): "merged" for row in (20, 22) for f in tree[row]}

    page.click("#choosing")
    page.select_option("#gallery-group", label="all images shown")
    page.click("#gallery-grid .thumb >> nth=0")
    page.click("#gallery-grid .thumb >> nth=11", modifiers=["Shift"])
    moved = report.images("#gallery-grid")[:12]
    assert page.inner_text("#chosen-count") == "12 pictures chosen"
    page.fill("#target", "kind 3")
    page.click("#chosen button >> text=Move")
    for i in range(12, 20):
        page.click(f"#gallery-grid .thumb >> nth={i}")
    page.fill("#target", " cafe\u0301 ")
    page.keyboard.press("Enter")
    new = report.images("#gallery-grid")[12:20]
    page.focus("#gallery-grid .thumb >> nth=30")
    ignored = report.images("#gallery-grid")[30:32]
    for key in ("Space", "ArrowRight", "Space"):
        page.keyboard.press(key)
    page.click("#ignore")
    assert told(report).startswith("2 pictures ignored; ")

    reload(report)
    assert page.inner_text("#branches-shown") == "30"
    assert page.input_value(".naming >> nth=1 >> input[type=text]") == "kind 1"
    content = said(report)
    assert content["clusters"] == results.clusters_id
    assert content["names"] == {}
    assert content["fine"] == expected
    names = report.names
    new_names = {names[i]: "caf\u00e9" for i in new}
    assert content["moved"] == {names[i]: "kind 3" for i in moved} | new_names
    assert sorted(content["ignored"]) == sorted(names[i] for i in ignored)
    then = page.inner_text("#then")
    assert str(photos) in then
    assert "python visualize_features.py" in then
    reload(report)
    assert told(report) == ""
    assert page.is_visible("#then")


def test_undo_takes_back_every_step(shaping: Report) -> None:
    report, page = shaping, shaping.page
    choose_groups(report, 12)
    name_row(report, 0, "wren")
    name_row(report, 1, "gull")
    page.click("#choosing")
    page.click("#gallery-grid .thumb >> nth=0")
    page.click("#gallery-grid .thumb >> nth=1")
    page.fill("#target", "gull")
    page.keyboard.press("Enter")
    before = said(report)
    assert len(before["moved"]) == 2
    for _ in range(3):
        page.keyboard.press("Escape")
        page.click("#undo")
    assert page.is_disabled("#undo")
    after = said(report)
    assert after["fine"] == after["moved"] == {}
