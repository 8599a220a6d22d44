"""The page of ranked lists: what it shows, against plain rankings and counts."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.evaluation import evaluate_ranking
from svll.evaluation.feature_files.ranked_lists import TOP, Wanted
from svll.evaluation.feature_files.sources import Source
from svll.reports.ranked_page import ranked_page
from tests.svll.reports.worlds import NASTY, draw_images, plain_ranking, world, written

EMPTY = ("img", "br", "meta")


class Page(HTMLParser):
    """A page's lists (each a list of cells' lines), its tables' rows, notes, tags and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.lists: list[list[tuple[str | None, list[str]]]] = []
        self.rows: list[list[str]] = []
        self.notes: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[tuple[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        had = dict(attrs)
        self.tags.append((tag, had))
        if tag in EMPTY:
            return
        self._open.append((tag, had.get("class")))
        if had.get("class") == "list wide":
            self.lists.append([])
        elif had.get("class") in ("asking", "match", "mistake"):
            self.lists[-1].append((had.get("class"), []))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif had.get("class") == "note":
            self.notes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        classes = [had for _, had in self._open]
        tags = [tag for tag, _ in self._open]
        if "list wide" in classes:
            self.lists[-1][-1][1].append(data)
        elif "td" in tags or "th" in tags:
            self.rows[-1][-1] += data
        elif "note" in classes:
            self.notes[-1] += data

    @property
    def images(self) -> list[dict[str, str | None]]:
        return [had for tag, had in self.tags if tag == "img"]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Page]:
    def make(source: Source, wanted: Wanted | None = None, **options: object) -> Page:
        file = written(source, tmp_path / "features.h5")
        path = ranked_page(file, tmp_path / "out", wanted, **options)  # type: ignore[arg-type]
        assert path == tmp_path / "out" / "ranked.html"
        return Page(path)

    return make


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of the world as it is, without paths."""
    folder = tmp_path_factory.mktemp("world")
    return Page(ranked_page(written(world(), folder / "f.h5"), folder, Wanted(count=7)))


def test_the_page_shows_the_lists_of_the_full_matrix_with_ticks_and_crosses(
    plain_page: Page
) -> None:
    source, page = world(), plain_page
    plain = plain_ranking(source)
    worst = sorted(plain, key=lambda row: (plain[row].average_precision, row))[:7]
    assert len(page.lists) == 7
    for row, cells in zip(worst, page.lists, strict=True):
        one = plain[row]
        assert cells[0] == ("asking", [
            f"row {row}", f"query {row}", f"identity {source.query.identities[row]}",
            f"camera {source.query.cameras[row]}", f"AP {one.average_precision:.4f}",
            f"match at rank {one.first_rank}",
        ])
        assert cells[1:] == [
            ("match" if one.matches[place] else "mistake", [
                f"row {near}", f"{place + 1} ", "✓" if one.matches[place] else "✗",
                f"identity {source.gallery.identities[near]}",
                f"camera {source.gallery.cameras[near]}", f"{one.distances[place]:.3f}",
            ])
            for place, near in enumerate(one.rows[:TOP].tolist())
        ]
    assert f"worst first: 7 of {len(plain)}." in page.text


def test_the_numbers_are_those_of_the_evaluation(plain_page: Page) -> None:
    source = world()
    query, gallery = source.query, source.gallery
    result = evaluate_ranking(
        query.features, gallery.features, query.identities, gallery.identities, query.cameras,
        gallery.cameras,
    )
    rows = {row[0]: row[1] for row in plain_page.rows if len(row) == 2}
    assert rows["mAP"] == f"{result.mAP:.4f}"
    assert rows["mINP"] == f"{result.mINP:.4f}"
    assert [rows[f"Rank-{r}"] for r in (1, 5, 10)] == [
        f"{result.cmc[r - 1]:.4f}" for r in (1, 5, 10)
    ]
    assert rows["queries"].split(",")[0] == str(result.queries)
    assert rows["gallery images"] == str((gallery.identities != -1).sum())
    assert rows["dataset"] == "<world>"
    assert rows["protocol"].startswith("cross_camera: ")


def test_each_camera_pair_has_its_map_and_the_worst_are_listed(plain_page: Page) -> None:
    source, page = world(), plain_page
    matrix = {
        (asking, asked): np.mean([
            one.average_precision for row, one in plain_ranking(source, only_camera=asked).items()
            if source.query.cameras[row] == asking and one.first_rank
        ])
        for asking in range(3) for asked in range(3) if asking != asked
    }
    start = page.rows.index(["query \\ gallery", "0", "1", "2"])
    for asking in range(3):
        assert page.rows[start + 1 + asking] == [str(asking), *(
            f"{matrix[asking, asked]:.3f}" if asking != asked else "" for asked in range(3)
        )]
    start = page.rows.index(["query camera", "gallery camera", "queries", "mAP", "Rank-1"])
    worst = sorted(matrix, key=lambda pair: matrix[pair])[:5]
    assert [(int(row[0]), int(row[1])) for row in page.rows[start + 1 : start + 6]] == worst


def test_images_are_in_the_page_and_nasty_names_stay_text(
    made: Callable[..., Page], tmp_path: Path
) -> None:
    source = world(folder=tmp_path / "data <i>")
    draw_images(source)
    page = made(source, Wanted(queries=["0", "1", "2", "3"]))
    assert {tag for tag, _ in page.tags} & {"script", "i", "world"} == set()
    assert not page.notes
    assert len(page.images) > 4 * (TOP + 1)
    assert all((had["src"] or "").startswith("data:image/jpeg;base64,") for had in page.images)
    titles = {had["title"] for had in page.images}
    shown = [f"{tmp_path}/data <i>/query/{name}" for name in NASTY]
    assert {*shown[:3], shown[3].replace("\udcff", "?")} <= titles


def test_missing_images_are_counted_on_top_and_found_where_they_are_now(
    made: Callable[..., Page], tmp_path: Path
) -> None:
    source = world(folder=tmp_path / "data")
    draw_images(source)
    wanted = Wanted(queries=["8", "9"])
    before = made(source, wanted)
    assert before.notes == []
    (tmp_path / "data").rename(tmp_path / "moved")
    page = made(source, wanted)
    [note] = page.notes
    count = len({had["title"] for had in before.images})
    assert note.startswith(f"{count} of {count} images on this page are missing or cannot be read")
    assert "(--root DIR), or extract the features again" in note
    assert f"and {count - 3} more" in note
    assert page.images == []
    assert page.lists[0][0][1][:2] == ["8.jpg", "query 8"]
    assert len([tag for tag in page.tags if tag[1].get("class") == "gone"]) == len(before.images)
    found = made(source, wanted, root=tmp_path / "moved")
    assert found.notes == []
    assert [had["src"] for had in found.images] == [had["src"] for had in before.images]


def test_a_file_without_paths_has_rows_numbers_in_place_of_images(plain_page: Page) -> None:
    assert plain_page.images == []
    assert "has no image paths" in plain_page.notes[0]


def test_confusions_are_in_a_table_with_an_example(plain_page: Page) -> None:
    source, page = world(), plain_page
    start = page.rows.index(
        ["query", "identity", "taken for", "identity", "ahead", "images", "in all", "distance"]
    )
    query, identity, near, wrong, ahead, _, in_all, _ = page.rows[start + 1]
    row, other = (int(word.removeprefix("row ")) for word in (query, near))
    assert source.query.identities[row] == int(identity)
    assert source.gallery.identities[other] == int(wrong)
    assert int(in_all) == (source.gallery.identities == int(wrong)).sum()
    assert re.fullmatch(r"\d+ of \d+", ahead)


def test_under_random_gallery_cameras_are_left_out_and_the_page_says_so(
    made: Callable[..., Page]
) -> None:
    page = made(world("random_gallery"))
    assert "means over 10 draws" in page.notes[0]
    assert "no camera pairs: the protocol random_gallery has no cameras." in page.notes
    assert page.lists
    assert not any("camera" in line for cells in page.lists for _, lines in cells for line in lines)


def test_of_a_single_camera_the_page_says_why_there_are_no_pairs(
    made: Callable[..., Page]
) -> None:
    source = world("all_gallery")
    one = [replace(part, cameras=part.cameras * 0) for part in (source.query, source.gallery)]
    page = made(replace(source, query=one[0], gallery=one[1]), Wanted(count=2))
    assert any("no camera pairs: all images are of camera 0, so" in note for note in page.notes)
    rows = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert rows["protocol"] == "all_gallery: no gallery image but the query's own is left out"
    assert rows["settings"] == (
        "euclidean distance of L2-normalised features, own images recognised by features, "
        "not re-ranked"
    )
    with pytest.raises(UserError, match="with one camera only, set protocol to all_gallery"):
        made(replace(source, query=one[0], gallery=one[1], protocol="cross_camera"))


def test_curves_are_files_in_the_folder_that_is_said_and_linked(
    made: Callable[..., Page], tmp_path: Path
) -> None:
    page = made(world(), figures=tmp_path / "pictures")
    names = [f"{name}.{kind}" for name in ("roc", "similarities") for kind in ("svg", "png")]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "pictures").iterdir())
    links = [had["href"] for tag, had in page.tags if tag == "a"]
    assert [f"../pictures/{name}" for name in names] == links[4:]
    assert links[:4] == ["#curves", "#confusions", "#cameras", "#lists"]
    assert {link[1:] for link in links[:4] if link} <= {had.get("id") for _, had in page.tags}


def test_what_is_asked_wrongly_is_told_before_anything_is_written(
    made: Callable[..., Page], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no query 99"):
        made(world(), Wanted(queries=["99"]))
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out: cannot be written: "):
        made(world())
