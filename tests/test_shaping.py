"""A person shapes the groups on the page, in a real browser."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from scipy.cluster.hierarchy import fcluster

from docs.make_pictures import READY
from src.clusters.names import read_names
from src.storage.artifacts import Manifest
from src.visualization.results import load_results
from tests.helpers.browser import CONTEXTS, OpenReport, Report, draw_report, read_table
from tests.helpers.digits import digits, save_picture, write_digits
from tests.helpers.pixel_run import pixel_run


def finish(root: Path, count: int, clusters: str) -> Path:
    """The results of pictures without labels."""
    write_digits(root / "pictures", count, "train")
    pixel_run(root / "results", "folder", root / "pictures", clusters=clusters)
    draw_report(root / "results")
    return root / "results"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("photos"), 400, "10")


def names_of(directory: Path) -> dict[str, str]:
    """By path, from images.csv; "" if the picture is ignored."""
    return {row["path"]: row["name"] for row in read_table((directory / "images.csv").read_bytes())}


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
    counts = [int(np.isin(results.fine, fine).sum()) for fine in branches(photos, count)]
    rows = "#groups .row:has(input[id^=group-]) .count"
    assert list(map(int, report.page.locator(rows).all_text_contents())) == counts
    for row, fine in enumerate(branches(photos, count)):
        assert {int(results.fine[i]) for i in pictures_of_row(report, row)} <= {*fine}
    report.page.click("#as-clustered")
    assert report.page.locator(rows).count() == 10


def test_a_person_shapes_400_pictures(open_report: OpenReport, tmp_path: Path) -> None:
    photos = finish(tmp_path, 400, "10")
    report = open_report(photos)
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
    report.open_filters()
    shown = {row["path"]: row["name"] for row in read_table(report.downloaded("#save-csv"))}
    (photos / "names.json").write_bytes(report.downloaded("#save-names"))
    content = read_names(photos).content
    assert content["clusters"] == Manifest(photos).clusters_id
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

    draw_report(photos)
    assert names_of(photos) == shown
    page.reload()
    report.js(READY)
    assert page.is_hidden("#changes")
    assert page.input_value(".naming >> nth=1 >> input[type=text]") == "kind 1"
    for count, clusters in ((400, "12"), (430, "10")):
        finish(tmp_path, count, clusters)
        now = names_of(photos)
        assert len(now) == count
        for path in (*content["moved"], *content["ignored"]):
            assert now[path] == shown[path]
        named = [path for path, name in shown.items() if not name.startswith("cluster ")]
        assert np.mean([now[path] == shown[path] for path in named]) > 0.9
    page.reload()
    report.js(READY)
    page.fill(".naming >> nth=0 >> input[type=text]", "last")
    page.keyboard.press("Tab")
    digests = json.loads(report.downloaded("#save-names"))["digests"]
    assert digests == read_names(photos).digests != {}


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


def drag(report: Report, places: Sequence[tuple[float, float]], touch: bool) -> None:
    """With the mouse or a finger, over the window."""
    devtools = report.page.context.new_cdp_session(report.page)
    for i, (x, y) in enumerate(places):
        kind = "Start" if i == 0 else "Move"
        if touch:
            points = [{"x": x, "y": y}]
            devtools.send(
                "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points}
            )
        else:
            report.page.mouse.move(x, y)
            if i == 0:
                report.page.mouse.down()
    if touch:
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    else:
        report.page.mouse.up()


@pytest.mark.parametrize("width", CONTEXTS)
def test_a_lasso_and_a_frame_choose_what_they_surround(
    open_report: OpenReport, photos: Path, width: str
) -> None:
    report = open_report(photos, **CONTEXTS[width])
    page = report.page
    page.click("#choosing")
    page.locator("#stage").scroll_into_view_if_needed()
    left, top, wide, high = page.locator("#map").bounding_box().values()
    at = [(0.2, 0.3), (0.6, 0.25), (0.5, 0.5), (0.8, 0.7), (0.3, 0.8)]
    places = [(left + x * wide, top + y * high) for x, y in at]
    drag(report, places, touch=width == "phone")
    inside = Outline(places).contains_points(report.points())
    assert 0 < inside.sum() < 400
    assert page.inner_text("#chosen-count") == f"{inside.sum()} pictures chosen"
    if width == "wide":  # a rectangle adds to it
        page.keyboard.down("Shift")
        drag(report, [(left + 5, top + 5), (left + 0.4 * wide, top + 0.6 * high)], touch=False)
        page.keyboard.up("Shift")
        x, y = report.points().T
        inside |= (x < left + 0.4 * wide) & (y < top + 0.6 * high)
    page.fill("#target", "inside")
    page.keyboard.press("Enter")
    assert page.is_hidden("#chosen")
    assert report.shown() == 400
    assert sorted(said(report)["moved"]) == sorted(np.array(report.names)[inside])


def test_keys_and_clicks_choose_on_the_map(open_report: OpenReport, photos: Path) -> None:
    report = open_report(photos)
    page = report.page
    first, second, third = report.isolated_images(3)
    page.mouse.click(*report.point(first))
    page.focus("#map")
    page.keyboard.press("Space")
    for image, key in ((second, "Shift"), (third, "Control")):
        page.keyboard.down(key)
        page.mouse.click(*report.point(image))
        page.keyboard.up(key)
    assert page.inner_text("#chosen-count") == "3 pictures chosen"
    assert report.selected() == first
    page.click("#ignore")
    assert page.inner_text(".row:has(#group--1) .count") == "3"
    page.keyboard.press("Control+z")
    assert page.locator("#group--1").count() == 0
    page.click("#choosing")
    page.mouse.click(*report.point(first))
    page.mouse.click(*report.point(first))  # and no longer
    assert page.is_hidden("#chosen")


def test_a_move_to_a_group_without_a_name_names_it(shaping: Report, photos: Path) -> None:
    page, results = shaping.page, load_results(photos)
    page.click("#choosing")
    page.click("#gallery-grid .thumb >> nth=2")
    moved = shaping.images("#gallery-grid")[2]
    page.fill("#target", "cluster 7")
    page.keyboard.press("Enter")
    shaping.open_filters()
    row = page.locator(".row:has(#group-7)")
    assert row.locator("button.name").inner_text() == "7 → cluster 7"
    assert row.locator(".count").inner_text() == str((results.clusters == 7).sum() + 1)
    name_row(shaping, 7, "wren")  # what was moved there goes along
    content = said(shaping)
    assert content["names"] == {"7": "wren"}
    assert content["moved"] == {shaping.names[moved]: "wren"}


def test_the_most_specific_name_wins_and_a_split_names_the_parts(
    open_report: OpenReport, photos: Path
) -> None:
    report = open_report(photos)
    page = report.page
    choose_groups(report, 50)
    (fine,) = branches(photos, 50)[0]
    name_row(report, 0, "gull")
    choose_groups_fewer = branches(photos, 5)
    page.fill("#branches", "5")
    report.until("rows.length === 6")  # five branches, and what is left of one of them
    own = next(at for at, part in enumerate(choose_groups_fewer) if fine in part)
    labels = page.locator(".naming .caption")
    report.until("document.querySelectorAll('.naming').length === 6")
    row = next(i for i, text in enumerate(labels.all_text_contents()) if text != "By name")
    name_row(report, row, "bird")
    content = said(report)["fine"]
    rest = [f for f in choose_groups_fewer[own] if f != fine]
    assert content == {str(fine): "gull"} | {str(f): "bird" for f in rest}
    page.click("[aria-label^='split ']:visible >> nth=0")
    content = said(report)["fine"]
    parts = [[f for f in rest if content[str(f)] == f"bird {p}"] for p in "ab"]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == rest
    # One of the parts is all of a branch below.
    all_branches = [set(part) - {fine} for n in range(2, 51) for part in branches(photos, n)]
    assert any(set(part) in all_branches for part in parts)


def tick_and_merge(report: Report, rows: Sequence[int], name: str) -> None:
    """An empty name takes the one that the page proposes."""
    for row in rows:
        report.page.check(f".naming >> nth={row} >> input[type=checkbox]")
    report.page.fill("#merged-name", name)
    report.page.click("#merge")
    report.settle()


def names_everywhere(report: Report, directory: Path) -> list[str]:
    """Of all pictures: as in the table of the page, which must be as the commands read the names
    that the page downloads."""
    rows = read_table(report.downloaded("#save-csv"))
    assert len(rows) == len(report.names)
    (directory / "names.json").write_bytes(report.downloaded("#save-names"))
    results = load_results(directory)
    (directory / "names.json").unlink()
    names = [*results.grouping.names, ""]
    assert [row["name"] for row in rows] == [names[g] for g in results.groups]
    return [row["name"] for row in rows]


def test_a_cluster_without_a_name_joins_none(open_report: OpenReport, photos: Path) -> None:
    report, clusters = open_report(photos), load_results(photos).clusters
    report.until("document.querySelectorAll('.naming').length === 10")
    name_row(report, 3, "cluster 1")
    tick_and_merge(report, [1, 2], "")
    called = {3: "cluster 1", 1: "unnamed cluster 1", 2: "unnamed cluster 1"}
    expected = [called.get(k, f"cluster {k}") for k in clusters]
    assert names_everywhere(report, photos) == expected
    name_row(report, 1, "")
    name_row(report, 2, "cluster 8")
    called |= {1: "unnamed cluster 1", 2: "cluster 8", 8: "unnamed cluster 8"}
    expected = [called.get(k, f"cluster {k}") for k in clusters]
    assert names_everywhere(report, photos) == expected


def move(report: Report, images: Sequence[int], to: str) -> None:
    report.js(f"choose({[*images]})")
    report.page.fill("#target", to)
    report.page.keyboard.press("Enter")
    report.settle()


def sizes(report: Report) -> dict[str, int]:
    """Of the groups, by what the filters call them."""
    rows = report.page.locator("#groups .row:has(input[id^=group-])")
    names, counts = (rows.locator(part).all_text_contents() for part in (".name", ".count"))
    return dict(zip(names, map(int, counts), strict=True))


def test_what_is_split_joins_no_other_group(open_report: OpenReport, photos: Path) -> None:
    report = open_report(photos)
    page = report.page

    def split(name: str) -> None:
        page.click(f".naming:nth-child({row_of(name) + 1}) .halve")
        report.settle()

    def row_of(name: str) -> int:
        return report.js(f"rows.findIndex((row) => row.name === {json.dumps(name)})")

    choose_groups(report, 4)
    name_row(report, 0, "dog")
    split("dog")
    name_row(report, row_of("dog a"), "dog")
    before = Counter(names_everywhere(report, photos))
    split("dog")
    after = Counter(names_everywhere(report, photos))
    assert after["dog b"] == before["dog b"]
    assert after["dog a"] + after["dog c"] == before["dog"]
    assert min(after["dog a"], after["dog c"]) > 0

    long = "x" * 53 + "\U0001f600" * 3  # 56 characters, 59 for JavaScript
    name_row(report, row_of("dog b"), long)
    split(long)
    assert {f"{long} a", f"{long} b"} <= {*names_everywhere(report, photos)}


def test_pictures_moved_to_a_group_follow_it_into_another(
    open_report: OpenReport, photos: Path
) -> None:
    report, clusters = open_report(photos), load_results(photos).clusters
    report.until("document.querySelectorAll('.naming').length === 10")
    tick_and_merge(report, [1, 2], "cats")
    move(report, np.flatnonzero(clusters == 0)[:3].tolist(), "cats")
    tick_and_merge(report, [1, 2], "kittens")
    names = names_everywhere(report, photos)
    assert "cats" not in names
    assert names.count("kittens") == np.isin(clusters, (1, 2)).sum() + 3


def test_the_commands_read_every_name_that_the_page_proposes(
    open_report: OpenReport, tmp_path: Path
) -> None:
    """Classes may have long names, and names that are no line of text."""
    long, odd = "pit bull terrier, " * 5 + "bull", "a\nb"
    for i, image in enumerate(digits()[:40]):
        save_picture(image, tmp_path / "pictures/train" / (long, odd)[i % 2] / f"{i:02d}.png")
    directory = tmp_path / "results"
    pixel_run(directory, "folder", tmp_path / "pictures", clusters="4")
    draw_report(directory)
    report, class_of = open_report(directory), load_results(directory).class_of_cluster
    assert sorted(class_of) == [-1, -1, 0, 1]
    for name in ("ab", long):  # of the classes in their order
        matched = class_of.tolist().index(0 if name == "ab" else 1)
        report.until("document.querySelectorAll('.naming').length === 4")
        tick_and_merge(report, [matched, class_of.tolist().index(-1)], "")
        assert name in names_everywhere(report, directory)


def test_a_filter_stays_with_its_group(open_report: OpenReport, photos: Path) -> None:
    report = open_report(photos)
    page = report.page
    for images, name in (([0, 1, 2], "b"), ([3, 4], "c")):
        move(report, images, name)
    report.open_filters()
    page.select_option("#gallery-group", label="c")
    page.click("[aria-label='show cluster b']")
    assert report.shown() == 397
    move(report, [0, 1, 2], "c")
    assert report.shown() == 400
    assert sizes(report)["c"] == 5
    assert page.inner_text("#gallery-title") == "C: 5 images"
    page.click("[aria-label='show cluster c']")
    report.until("document.querySelectorAll('.naming').length === 11")
    name_row(report, 10, "d")
    assert sizes(report)["d"] == 5
    assert report.shown() == 395


def test_rows_show_the_most_certain_pictures_and_more_of_them(
    open_report: OpenReport, photos: Path
) -> None:
    report, results = open_report(photos), load_results(photos)
    report.until("document.querySelectorAll('.naming').length === 10")
    for row in range(10):
        own = np.flatnonzero(results.clusters == row)
        best = np.sort(results.certainty[own])[::-1]
        np.testing.assert_array_equal(results.certainty[pictures_of_row(report, row)], best[:9])
    own = np.bincount(results.clusters)
    row = int(own.argmax())
    report.page.click(f"[aria-label='more of cluster {row}']")
    assert len(pictures_of_row(report, row)) == min(own[row], 57)


def test_the_gallery_can_show_all_pictures_with_their_certainty(
    open_report: OpenReport, photos: Path
) -> None:
    report, results = open_report(photos), load_results(photos)
    page = report.page
    page.select_option("#gallery-group", "all")
    page.select_option("#gallery-order", "unsure")
    page.click("#all")
    assert report.images("#gallery-grid") == np.argsort(results.certainty, kind="stable").tolist()
    shown = page.locator("#gallery-grid small").all_text_contents()
    assert shown == [f"{c:.2f}" for c in np.sort(results.certainty)]
    assert page.is_hidden("#all")
    page.click("#choose-gallery")
    assert page.inner_text("#chosen-count") == "400 pictures chosen"


def test_filters_move_the_map_to_what_is_left(shaping: Report) -> None:
    page = shaping.page
    image = int(np.argmax(np.abs(shaping.xy).sum(axis=1)))  # at the edge
    page.fill("#search", shaping.names[image])
    left, top, wide, high = page.locator("#map").bounding_box().values()
    assert shaping.hovers_over(image, left + wide / 2, top + high / 2)
    page.click("#show-all")
    assert shaping.hovers_over(image, *shaping.point(image))


def test_colors_of_the_map(open_report: OpenReport, photos: Path) -> None:
    report = open_report(photos)
    before = report.pixels("#map")
    for color in ("margin", "unusual"):
        report.page.select_option("#color", label=color)
        pixels = report.pixels("#map")
        assert (pixels != before).any()
        assert report.js("written") == []
        before = pixels


def test_the_verdict_and_the_name_stand_at_the_top(shaping: Report) -> None:
    page = shaping.page
    assert page.title() == "results: clusters"
    assert page.inner_text("h1") == "Clusters of results"
    assert shaping.in_view("#verdict")
    assert page.inner_text("#verdict").startswith("Trust: ")
