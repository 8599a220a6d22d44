"""A user's own images become a run: split, settings that fit, and what is refused."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest

import svll.runs.own_data
from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import named_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.training import ranks
from svll.config import RECIPES, Config
from svll.data.readers import csv_list
from svll.data.readers.csv_list import Entry
from svll.runs.own_data import OwnRun, own_run
from svll.runs.preflight import preflight
from tests.svll.data.trees import picture


def images(root: Path, identities: int = 6, layout: str = "names", each: int = 4) -> Path:
    """Write `each` images of each identity, of two cameras in turn; returns their folder."""
    for identity in range(1, identities + 1):
        for number in range(each):
            camera = number % 2 + 1
            picture(root / {
                "names": f"{identity:04}_c{camera}s1_{number}.jpg",
                "folders": f"p{identity}/cam{camera}/{number}.jpg",
                "plain": f"p{identity}/{number}.jpg",
            }[layout])
    return root


def own(place: Path, *overrides: str, extends: str = "synthetic") -> OwnRun:
    """Return the run on a folder, whose runs are beside it."""
    return own_run(place, extends, [f"run.runs={place.parent / 'runs'}", *overrides])


def rows_of(found: OwnRun) -> list[dict[str, str]]:
    with Path(str(found.config.data.root)).open(newline="") as file:
        return list(csv.DictReader(file))


def told(found: OwnRun, word: str) -> str:
    [line] = [line for line in found.found if word in line]
    return line


@pytest.mark.parametrize("identities", [4, 6, 24])
@pytest.mark.parametrize("layout", ["names", "folders"])
def test_both_layouts_give_parts_without_common_identities_and_queries_with_matches(
    tmp_path: Path, layout: str, identities: int
) -> None:
    found = own(images(tmp_path / "mine", identities, layout))
    rows = rows_of(found)
    assert found.config.data.root == str(tmp_path / "runs" / "mine" / "split.csv")
    assert len(rows) == 4 * identities
    parts = defaultdict(set)
    for row in rows:
        parts[row["split"].replace("query", "gallery")].add(row["identity"])
        assert row["camera"] in ("1", "2")
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == identities
    assert set(parts) == {"train", "gallery"} | ({"validation"} if identities == 24 else set())
    for query in (row for row in rows if row["split"] == "query"):
        assert any(row["identity"] == query["identity"] and row["camera"] != query["camera"]
                   for row in rows if row["split"] == "gallery")
    assert found.query in {row["path"] for row in rows if row["split"] == "query"}
    size = preflight(found.config)
    assert (size.identities, size.cameras) == (len(parts["train"]), 2)


def test_settings_fit_what_is_there_and_each_is_told(tmp_path: Path) -> None:
    found = own(images(tmp_path / "mine"))
    config = found.config
    assert (config.stage2.batch, config.stage2.instances, config.model.sie) == (12, 4, "camera")
    assert (config.stage2.epochs, config.stage1.epochs, config.run.name) == (30, 60, "mine")
    assert found.found[0] == f"{tmp_path / 'mine'}: 24 images of 6 identities, 2 cameras"
    assert "4 images of each of 3 training identities" in told(found, "stage2.batch=12")
    assert "12 training images, so +small" in told(found, "synthetic+small")
    assert "no epoch is selected" in told(found, "  validation ")
    plain = own(images(tmp_path / "plain", layout="plain"))
    assert plain.config.model.sie == "none"
    assert "cameras are unknown" in told(plain, "model.sie=none")
    assert "cameras unknown" in plain.found[0]
    vehicles = own(tmp_path / "mine", extends="vehicleid")
    assert (vehicles.config.data.test, vehicles.config.model.sie) == ([], "camera")
    large = own(images(tmp_path / "large", 40))
    assert large.config.stage2.batch == 32
    assert not any("stage2.batch" in line for line in large.found)


def test_a_machine_that_only_emulates_bf16_trains_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(tmp_path / "mine")
    for is_fast, precision in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(ranks, "has_fast_bf16", lambda is_fast=is_fast: is_fast)
        found = own(tmp_path / "mine", extends="market1501")
        assert found.config.engine.precision == precision
        assert not any("precision" in word for word in found.words)  # a GPU would train in fp32
        assert is_fast or "on this machine, which only" in told(found, "engine.precision=fp32")
    found = own(tmp_path / "mine", "engine.precision=fp32", extends="market1501")
    assert "engine.precision=fp32" in found.words


def test_what_the_user_sets_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path / "mine", layout="plain")
    found = own(tmp_path / "mine", "stage2.batch=8", "stage2.epochs=2", "model.sie=camera")
    assert (found.config.stage2.batch, found.config.stage2.epochs) == (8, 2)
    assert found.config.model.sie == "camera"
    (tmp_path / "my.yaml").write_text("extends: synthetic\nstage2: {batch: 8, epochs: 3}\n")
    found = own(tmp_path / "mine", extends=str(tmp_path / "my.yaml"))
    assert (found.config.stage2.batch, found.config.stage2.epochs) == (8, 3)
    assert (found.config.model.name, found.config.stage1.epochs) == ("svll-tiny", 20)
    assert "your own, so +small is not added" in told(found, "my.yaml")
    monkeypatch.setattr(svll.runs.own_data, "FEW_IMAGES", 12)
    assert own(tmp_path / "mine").config.stage2.epochs == 12  # the recipe's


@pytest.mark.parametrize("extends", ["synthetic", "vehicleid", "synthetic+small"])
def test_the_printed_recipe_and_overrides_are_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extends: str
) -> None:
    monkeypatch.setattr(ranks, "has_fast_bf16", lambda: True)
    found = own(images(tmp_path / "mine"), "seed=3", "stage1.epochs=1", extends=extends)
    recipe, *words = found.words
    same = build(Config, [*named_recipe(recipe, Config, RECIPES), *parse_overrides(words)])
    assert same == found.config
    assert signature(same) == signature(found.config)


def test_a_split_is_kept_and_may_be_edited(tmp_path: Path) -> None:
    place = images(tmp_path / "mine")
    file = Path(str(own(place).config.data.root))
    first = file.read_text()
    edited = first.replace(",train", ",gallery", 1)
    file.write_text(edited)
    picture(place / "0007_c1s1_1.jpg")
    again = own(place, "seed=9")
    assert file.read_text() == edited
    assert "1 image is not in it and not used" in told(again, "which is there already")
    (place / "0001_c1s1_0.jpg").unlink()
    with pytest.raises(UserError, match=r"split\.csv, an earlier split, lists 1 image that .*mine "
                       r"does not have, such as .*0001_c1s1_0\.jpg; remove these lines, delete"):
        own(place)
    file.unlink()
    (place / "0007_c1s1_1.jpg").unlink()
    picture(place / "0001_c1s1_0.jpg")
    own(place)
    assert file.read_text() == first
    other = images(tmp_path / "else" / "mine", 8)
    with pytest.raises(UserError, match=r"add run\.name=NAME for a separate split"):
        own(other, f"run.runs={tmp_path / 'runs'}")
    assert own(other, f"run.runs={tmp_path / 'runs'}", "run.name=b").config.run.name == "b"


def test_labels_that_changed_since_the_split_are_refused(tmp_path: Path) -> None:
    place = images(tmp_path / "mine").with_suffix(".csv")

    def listed(identity: str, camera: str, header: str = "path,identity,camera") -> None:
        rows = [f"mine/{name},{name[3]}.0,{name[6]}"
                for name in sorted(path.name for path in (tmp_path / "mine").iterdir())]
        rows[1] = f"mine/0001_c1s1_2.jpg,{identity},{camera}"
        place.write_text("\n".join([header, *rows]))

    listed("1.0", "1")
    file = Path(str(own(place).config.data.root))
    own(place)
    listed("1", "1")  # written in another way
    own(place)
    for identity, camera, said in (("2", "1", "identity 1 there, 2 now"),
                                   ("1", "7", "camera 1 there, 7 now")):
        listed(identity, camera)
        with pytest.raises(UserError, match=rf"other labels than .*mine\.csv for 1 image, such as "
                           rf".*0001_c1s1_2\.jpg \({said}\); delete the file to split again, add "
                           r"run\.name=NAME .*--data /.*split\.csv"):
            own(place)
    assert own(place, "run.name=b").config.run.name == "b"
    listed("1", "1", "path,identity,view")
    with pytest.raises(UserError, match=r"for 24 images, .*camera 1 there, unknown now, view unk"):
        own(place)
    file.unlink()
    own(place)
    one = images(tmp_path / "one")
    for image in one.iterdir():
        image.rename(one / image.name.replace("_c2", "_c1"))
    own(one)
    own(one)  # its only camera is not in the split


def test_ranks_that_split_at_once_write_the_same_list_and_remove_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = images(tmp_path / "mine")
    texts: list[str] = []

    def write_after_another_rank(file: Path, entries: list[Entry]) -> None:
        monkeypatch.setattr(csv_list, "write", write)
        texts.append(Path(str(own(place).config.data.root)).read_text())
        write(file, entries)
        texts.append(file.read_text())

    def rmdir(folder: Path) -> None:
        raise AssertionError(f"{folder}: another rank may be about to write there")

    write = csv_list.write
    monkeypatch.setattr(csv_list, "write", write_after_another_rank)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    own(place)
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["split.csv"]


def test_a_split_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    place = images(tmp_path / "mine")
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match=r"split\.csv: cannot be written: .*: run\.runs=FOLDER"):
        own(place)


@pytest.mark.parametrize("layout", ["names", "folders", "plain"])
def test_runs_in_the_folder_of_the_images_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.chdir(images(tmp_path / "mine", layout=layout))
    first = own_run(Path(), "synthetic", [])
    text = Path(str(first.config.data.root)).read_text()
    assert first.config.data.root == str(tmp_path / "mine" / "runs" / "mine" / "split.csv")
    picture(tmp_path / "mine" / "runs" / "mine" / "0a1b" / "map.jpg")
    again = own_run(Path(), "synthetic", [])
    assert (again.config, again.found[0]) == (first.config, first.found[0])
    Path(str(first.config.data.root)).unlink()
    own_run(Path(), "synthetic", [])
    assert Path(str(first.config.data.root)).read_text() == text


@pytest.mark.parametrize("runs", ["", "p1", "p1/cam1", "p1/new", "new/runs"])
def test_a_folder_of_runs_among_the_images_is_refused_at_once(tmp_path: Path, runs: str) -> None:
    place = images(tmp_path / "mine", layout="plain")
    with pytest.raises(UserError, match=r"is among the images of .*; name another .*run\.runs=FOL"):
        own(place, f"run.runs={place / runs}")
    assert not list(tmp_path.rglob("*.csv"))


def test_a_list_with_a_split_is_used_as_it_is(tmp_path: Path) -> None:
    first = own(images(tmp_path / "mine"))
    again = own(Path(str(first.config.data.root)))
    assert again.config.data.root == first.config.data.root
    assert again.config.run.name == "split"
    assert "the split in its column is used" in again.found[0]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"p{i}/{n}.jpg" for i in range(3) for n in range(3)], "at least 4 identities are needed"),
        ([f"p{i}/0.jpg" for i in range(6)], "0 of 6 identities can be matched: two images are"),
        ([f"{i:04}_c1_0.jpg" for i in range(6)], "0 of 6 identities can be matched: two images"),
        (["a/notes.txt", "b/notes.txt"], r"no images there \(\.jpg, .*\nTwo layouts work:"),
        ([], r"no images there \(\.jpg, .*\nTwo layouts work:"),
        (["p1/0.jpg", "x.jpg"], r"1 folders \(p1\) and 1 images beside them.*\nTwo layouts work:"),
        (["x.jpg", "y.jpg"], r"2 images are neither in a folder per identity.*\nTwo layouts work"),
        (["train/p1/0.jpg", "test/p2/0.jpg"], "holds test, train, so it seems to be split already"),
        (["cam1/p1.jpg", "cam2/p1.jpg"], r"holds a folder per camera \(cam1, cam2\)"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_reason(
    tmp_path: Path, names: list[str], said: str
) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    for name in names:
        picture(place / name) if name.endswith(".jpg") else (
            (place / name).parent.mkdir(), (place / name).write_text("x"))
    with pytest.raises(UserError, match=f"(?s){said}"):
        own(place)
    assert not (tmp_path / "runs").exists()


def test_overrides_that_name_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data gives the images; leave out data\.name, data\.ro"):
        own(tmp_path, "data.root=x", "data.name=folder")
    with pytest.raises(UserError, match="nowhere: no such folder or CSV file"):
        own(tmp_path / "nowhere")
