"""Sections of a report on trained models: what there is is shown, what is missing is said."""

import shutil
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.reporting.page import page
from svll.evaluation.feature_files.ranked_lists import Wanted
from svll.reports.figures.tsne import image_figure
from svll.reports.sections import figures_section, ranked_section
from tests.svll.reports.test_report import Read


@pytest.fixture
def read(tmp_path: Path):
    def make(*parts: object) -> Read:
        file = tmp_path / "page.html"
        file.write_text(page("title", *parts))
        return Read(file)

    return make


def test_figures_of_two_runs_stand_side_by_side_with_their_numbers(
    make_run, tmp_path: Path, read
) -> None:
    runs = {"baseline <1>": make_run(), "SVLL": make_run("stage2.lr=1e-4", spread=0.2)}
    found = read(figures_section(runs, tmp_path))
    assert found.headings[1:] == [
        "What the models have learned", "Images after stage 2", "Texts after stage 1",
        "Attention of the class token",
    ]
    numbers = image_figure(runs).numbers
    table = found.tables[0]
    assert [row[0] for row in table] == ["", "baseline <1>", "SVLL"]
    place = table[0].index("silhouette")
    for row in table[1:]:
        assert row[place] == f"{numbers[row[0]]['silhouette']:.4g}"
    for target in found.targets:
        assert (tmp_path / target).is_file(), target
    assert {Path(target).stem for target in found.targets} == {
        "tsne-images", "tsne-texts", "attention"
    }


def test_what_a_run_lacks_is_said_in_its_place(run: Path, tmp_path: Path, read) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "config.yaml", bare)
    runs = {"bare": bare}
    found = read(
        figures_section(runs, tmp_path),
        ranked_section(runs, tmp_path, Wanted())[0],
    )
    assert found.tables == []
    assert found.text.count("features.h5") >= 3
    assert f"bare: {bare}/features.h5: is missing; python launch/features.py" in found.text


def test_ranked_lists_are_written_into_the_runs_folder_and_linked(
    run: Path, tmp_path: Path, read
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    section, pages = ranked_section({"mine": copy}, tmp_path, Wanted(count=2))
    found = read(section)
    assert pages == [copy / "ranked.html"]
    assert found.targets == ["run/ranked.html"]
    assert (copy / "ranked.html").is_file()
    assert (copy / "figures" / "roc.png").is_file()
    with pytest.raises(UserError, match=r"nowhere\.jpg"):
        ranked_section({"mine": copy}, tmp_path, Wanted(queries=["nowhere.jpg"]))
