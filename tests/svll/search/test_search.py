"""Searching a folder: the plain ranking, honest thresholds, and files that stand any name."""

import csv
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import svll
from harness.base.errors import Hindered, UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from harness.runs.run import Run
from svll.config import RECIPES, Config
from svll.data.side_labels import SideLabels
from svll.features.from_weights import encode_tests
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel, SideInformation
from svll.models.weights.run_weights import save_model
from svll.search.page import search_page, write_search
from svll.search.search import EncodedImages, SearchResults, rank, search
from svll.search.threshold import Threshold, calibrated_threshold, given_threshold
from tests.svll.search.test_threshold import WIDTH, labelled

NASTY = ["<b>bold & 'q'.jpg", 'a "quoted" name.PNG', "deep er/ünï 写真.webp", "a,b\n.jpeg"]


def make_run(folder: Path, sie: str = "none") -> Run:
    recipe = read_recipe(RECIPES / "synthetic_tiny.yaml", Config)
    config = build(Config, [*recipe, *parse_overrides([f"model.sie={sie}"])])
    clip = load_clip("svll-tiny", "shipped", height=64, width=32, stride=8)
    side = None if sie == "none" else SideInformation(
        "camera", cameras=2, views=1, width=128, weight=1.0, unseen="none"
    )
    run = Run(folder)
    save_model(
        run.weights_file, ReIDModel(clip.image, side).state_dict(), config,
        text=torch.zeros(2, 128), identities=2,
        side_labels=SideLabels({"synthetic": [1, 2]}, {"synthetic": [0]}),
    )
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


def draw(path: Path, seed: int) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 3, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((30 + seed, 70)).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for seed, name in enumerate(["one.jpg", "two.bmp", NASTY[0]]):
        draw(tmp_path / "query" / name, seed)
    for seed, name in enumerate([*(f"{n}.jpg" for n in range(8)), *NASTY], start=1):
        draw(tmp_path / "gallery" / name, seed)
    return tmp_path / "query", tmp_path / "gallery"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def encoded(count: int, seed: int, folder: str = "/none") -> EncodedImages:
    rows = np.random.default_rng(seed).standard_normal((count, 12)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return EncodedImages([Path(folder, f"{n}.jpg") for n in range(count)], rows, [])


# --- ranking ---


@pytest.mark.parametrize("top_k", [1, 7, 500])
def test_ranking_is_that_of_the_whole_matrix(top_k: int) -> None:
    queries, gallery = encoded(40, 1, "/q"), encoded(300, 2, "/g")
    gallery.features[17] = gallery.features[250]  # equal similarities: the first row goes first
    matrix = queries.features.astype(np.float64) @ gallery.features.T.astype(np.float64)
    matrix[:, 250] = matrix[:, 17]
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :top_k]
    nearest, similarities = rank(queries, gallery, top_k)
    assert nearest.tolist() == order.tolist()
    np.testing.assert_allclose(
        similarities, np.take_along_axis(matrix, order, 1), rtol=0, atol=1e-6
    )


def test_no_image_finds_itself_by_whatever_path(tmp_path: Path) -> None:
    same = encoded(30, 3, str(tmp_path))
    for path in same.paths:
        path.touch()
    (tmp_path / "link").symlink_to(tmp_path)
    again = EncodedImages([tmp_path / "link" / path.name for path in same.paths], same.features, [])
    matrix = same.features.astype(np.float64) @ same.features.T.astype(np.float64)
    np.fill_diagonal(matrix, -np.inf)
    expected = np.argsort(-matrix, axis=1, kind="stable")
    for gallery in (same, again):
        nearest, similarities = rank(same, gallery, 30)
        assert nearest[:, :29].tolist() == expected[:, :29].tolist()
        assert set(nearest[:, 29]) == {-1}
        assert set(similarities[:, 29]) == {-math.inf}


def test_a_search_finds_what_the_models_features_say(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    query, gallery = folders
    found = search(run.folder, query, gallery, top_k=4)
    table = rows_of(write_search(found, tmp_path / "out")[1])
    model = svll.load(run.folder)
    asking, known = (sorted(p for p in side.rglob("*") if p.is_file()) for side in folders)
    matrix = model.encode(asking) @ model.encode(known).T
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :4]
    expected = [(str(asking[q]), str(r), str(known[g]))
                for q in range(3) for r, g in enumerate(order[q], start=1)]
    assert [(row["query"], row["rank"], row["gallery"]) for row in table] == expected
    similarities = np.array([float(row["similarity"]) for row in table]).reshape(3, 4)
    np.testing.assert_allclose(
        similarities, np.take_along_axis(matrix, order, 1), rtol=0, atol=1e-5
    )
    assert {row["accepted"] for row in table} == {""}


def test_one_folder_for_both_and_more_wanted_than_there_are(
    run: Run, folders: tuple[Path, Path]
) -> None:
    found = search(run.weights_file, folders[0], folders[0], top_k=50)
    for answer in found.queries:
        others = {other.query for other in found.queries} - {answer.query}
        assert {hit.path for hit in answer.hits} == others
        assert len(answer.hits) == 2


def test_an_image_alone_finds_nothing_and_the_page_says_so(
    run: Run, folders: tuple[Path, Path]
) -> None:
    one = folders[0] / "one.jpg"
    found = search(run.folder, one, one)
    assert [answer.hits for answer in found.queries] == [[]]
    assert "There is no other image in the gallery." in search_page(found)


# --- images that cannot be read ---


def test_a_broken_image_is_named_counted_and_left_out(
    run: Run, folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    query, gallery = folders
    (gallery / "3.jpg").write_bytes((gallery / "3.jpg").read_bytes()[:300])
    (gallery / "<i>no.png").write_bytes(b"text")
    with caplog.at_level(logging.WARNING):
        found = search(run.folder, query, gallery, top_k=100)
    broken = {Path(path).name: reason for path, reason in found.faults}
    assert set(broken) == {"3.jpg", "<i>no.png"}
    assert broken["<i>no.png"] == "not an image"
    assert found.images == 11
    assert {len(answer.hits) for answer in found.queries} == {11}
    assert "Skipped 2 of 13 images that cannot be read:" in caplog.text
    assert f"{gallery / '<i>no.png'}: not an image" in caplog.text
    document = search_page(found)
    assert "Skipped 2 images that cannot be read" in document
    assert "&lt;i&gt;no.png" in document
    (gallery / "1.jpg").unlink()
    assert search_page(found).count("cannot be read any more") == 3


def test_a_folder_of_broken_images_alone_is_a_mistake(run: Run, tmp_path: Path) -> None:
    draw(tmp_path / "query" / "a.jpg", 1)
    (tmp_path / "gallery").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "gallery" / name).touch()
    with pytest.raises(UserError, match=r"none of 2 images can be read:\n.*a\.jpg: empty"):
        search(run.folder, tmp_path / "query", tmp_path / "gallery")


# --- thresholds ---


def test_accepted_is_what_reaches_the_threshold_and_nothing_else(
    run: Run, folders: tuple[Path, Path]
) -> None:
    query, gallery = folders
    every = search(run.folder, query, gallery, top_k=100)
    similarities = sorted(hit.similarity for answer in every.queries for hit in answer.hits)
    limit = similarities[len(similarities) // 2]  # one of them: it is accepted itself
    found = search(run.folder, query, gallery, top_k=100, threshold=given_threshold(limit))
    hits = [hit for answer in found.queries for hit in answer.hits]
    assert [hit.accepted for hit in hits] == [hit.similarity >= limit for hit in hits]
    assert sum(bool(hit.accepted) for hit in hits) == len(hits) - len(similarities) // 2
    assert {hit.label for hit in hits} == {"accepted", "rejected"}
    document = search_page(found)
    assert document.count(">accepted<") == sum(bool(hit.accepted) for hit in hits)
    assert f"at least {limit:.4f} are accepted, as given; the error rates are unknown." in document


def verdict_of(folder: Path, images: int, threshold: Threshold | None, *, side: bool) -> str:
    return SearchResults(folder, folder, folder, images, [], [], threshold, side).criterion


def test_the_verdict_tells_what_to_expect_and_what_is_missing(tmp_path: Path) -> None:
    threshold = calibrated_threshold(labelled(tmp_path / "f.h5"), 0.02)
    assert threshold.calibration is not None
    wrong = 500 * threshold.calibration.rates.fpr
    plain, sided = (verdict_of(tmp_path, 500, threshold, side=s) for s in (False, True))
    assert plain.endswith(f"expect about {wrong:.2g} wrong images per query in a gallery of 500.")
    assert sided.startswith(f"{plain} The model was trained with side information")
    assert verdict_of(tmp_path, 5, None, side=True) == (
        "No threshold, so no image is accepted or rejected: none was given, and "
        f"{tmp_path} is not a run's folder with features.h5 to find one on; add --threshold-from "
        "FEATURES.h5, or --threshold with a similarity."
    )
    assert "side information" not in verdict_of(tmp_path, 5, given_threshold(0.5), side=True)


def test_side_information_of_the_model_is_noticed(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    sided = make_run(tmp_path / "run", "camera")
    assert search(sided.folder, folders[0], folders[0]).has_side


def test_a_threshold_of_another_models_features_is_refused(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    threshold = calibrated_threshold(labelled(tmp_path / "f.h5", width=8))
    with pytest.raises(UserError, match=r"f\.h5: its features have 8 numbers, this model's "
                       f"{WIDTH}; find the threshold on features of this model"):
        search(run.folder, *folders, threshold=threshold)


# --- files ---


def test_names_with_html_quotes_spaces_and_other_letters_stay_names(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found = search(run.folder, *folders, top_k=100)
    page, table = write_search(found, tmp_path / "new" / "out put")
    document = page.read_text(encoding="utf-8")
    assert "<b>bold" not in document
    assert "&lt;b&gt;bold &amp; &#x27;q&#x27;.jpg" in document
    assert 'alt="a &quot;quoted&quot; name.PNG"' in document
    assert "deep er/ünï 写真.webp" in document
    assert document.count("data:image/jpeg;base64,") == 3 * (1 + 12)
    named = {row["gallery"] for row in rows_of(table)}
    assert {str(folders[1] / name) for name in NASTY} <= named


def test_a_name_that_is_not_utf_8_keeps_its_bytes_in_the_table(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    for side in ("query", "gallery"):
        draw(tmp_path / side / "a.jpg", 1).rename(tmp_path / side / name)
    found = search(run.folder, tmp_path / "query" / name, tmp_path / "gallery")
    page, table = write_search(found, tmp_path)
    assert rows_of(table)[0]["gallery"] == str(tmp_path / "gallery" / name)
    assert "caf\N{REPLACEMENT CHARACTER}.jpg" in page.read_text(encoding="utf-8")


def test_the_page_of_many_queries_shows_the_first(
    run: Run, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svll.search.page.MOST_QUERIES", 2)
    page, table = write_search(search(run.folder, *folders, top_k=1), tmp_path)
    document = page.read_text(encoding="utf-8")
    assert "The first 2 of 3 queries are shown; search.csv has all." in document
    assert document.count('class="answer"') == 2
    assert len(rows_of(table)) == 3


def test_a_gpu_that_was_given_and_cannot_be_used_is_reported_before_images_are_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 16)).save(tmp_path / "a.png")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for call in (
        lambda: search(tmp_path / "none.pth", tmp_path, tmp_path),
        lambda: encode_tests(tmp_path / "none.pth", Config()),
    ):
        with pytest.raises(Hindered, match="CUDA_VISIBLE_DEVICES=0, but torch cannot use a GPU"):
            call()
