"""A run is named by what is in its files, and refuses others."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.config.values import to_mapping
from svll.config import RECIPES, Config
from svll.data import datasets
from svll.models.clip import TINY_WEIGHTS, fetch
from svll.reuse.fingerprints import Fingerprints, check_pinned, check_weights, pin
from svll.world.world import named_world, write_world
from tests.svll.data import trees


def config_of(runs: Path, *words: str) -> Config:
    settings = [*read_recipe(RECIPES / "synthetic_tiny.yaml", Config),
                *parse_overrides([f"run.runs={runs}", *words])]
    return build(Config, settings)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(TINY_WEIGHTS, tmp_path / "mine.safetensors"))


def change(path: Path) -> None:
    """Flip a byte, of the same size, as a second download may."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_other_bytes_in_a_weights_file_are_another_run(weights: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path / "runs", f"model.weights={weights}")
    before = signature(pin(config))
    assert signature(pin(config)) == before
    change(weights)
    assert signature(pin(config)) != before


def test_a_file_is_hashed_once_as_long_as_it_stays_as_it_is(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path / "runs", f"model.weights={weights}")
    with caplog.at_level("INFO", "svll.reuse.fingerprints"):
        pin(config)
        pin(config)
        assert caplog.text.count("hashing") == 1
        change(weights)
        pin(config)
        assert caplog.text.count("hashing") == 2


def test_a_weights_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    # a file that root cannot read either
    with pytest.raises(UserError, match="/proc/self/mem cannot be read: Input/output error"):
        pin(config_of(tmp_path / "runs", "model.weights=/proc/self/mem"))


@pytest.mark.parametrize("word", ["/nowhere", "clip/ViT-B-16", "ViT-B-16.pt"])
def test_a_weights_file_that_is_not_there_is_reported(tmp_path: Path, word: str) -> None:
    message = rf"^model\.weights: {word}: no such file; give a weights file, or a tag of open_clip"
    with pytest.raises(UserError, match=message):
        pin(config_of(tmp_path / "runs", f"model.weights={word}"))
    assert not (tmp_path / "runs").exists()
    assert pin(config_of(tmp_path / "runs", "model.weights=openai")).model.weights == "openai"


def write_list(folder: Path, identities: Sequence[int]) -> Path:
    """A dataset by list: an image of each split, and whom they show."""
    splits = ("train", "train", "query", "gallery")
    lines = ["path,identity,camera,split"]
    for number, (split, identity) in enumerate(zip(splits, identities, strict=True)):
        (folder / f"{number}.jpg").write_bytes(bytes([number]))
        lines.append(f"{number}.jpg,{identity},{number},{split}")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    return folder / "mine.csv"


def test_another_label_in_a_list_is_another_run(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    words = ("data.name=list", f"data.root={write_list(images, [1, 2, 3, 3])}")
    before = pin(config_of(tmp_path / "runs", *words))
    assert signature(pin(config_of(tmp_path / "runs", *words))) == signature(before)
    write_list(images, [1, 1, 3, 3])
    assert signature(pin(config_of(tmp_path / "runs", *words))) != signature(before)


def test_a_change_that_no_time_shows_is_found_at_the_start_and_fixed_by_the_same_command(
    tmp_path: Path,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    words = ("data.name=list", f"data.root={write_list(images, [1, 2, 3, 3])}")
    before = pin(config_of(tmp_path / "runs", *words))
    (images / "0.jpg").write_bytes(b"longer")  # in place: its folder's time stays
    assert signature(pin(config_of(tmp_path / "runs", *words))) == signature(before)
    with pytest.raises(UserError, match="give the command again for a run on these files"):
        check_pinned(before, datasets.load_datasets(before.data, tmp_path))
    assert signature(pin(config_of(tmp_path / "runs", *words))) != signature(before)


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_a_run_on_msmt17_knows_its_own_files_again(version: str, tmp_path: Path) -> None:
    tree = trees.msmt17(tmp_path, version)
    config = pin(config_of(tmp_path / "runs", "data.name=msmt17", f"data.root={tree.root}"))
    check_pinned(config, datasets.load_datasets(config.data, tmp_path))
    Path(next(iter(tree.labels("train")))).unlink()
    with pytest.raises(UserError, match=r"^the files of msmt17 have changed"):
        check_pinned(config, datasets.load_datasets(config.data, tmp_path))


def test_a_synthetic_world_in_a_folder_of_its_own_is_pinned(tmp_path: Path) -> None:
    world = write_world(named_world(4, "person", seed=1), tmp_path / "world")
    config = pin(config_of(tmp_path / "runs", f"data.roots={{synthetic: {world}}}"))
    assert config.data.fingerprint
    check_pinned(config, datasets.load_datasets(config.data, tmp_path))


@pytest.mark.parametrize(("train", "test", "named"), [
    ("vehicleid_800, vehicleid_1600", "vehicleid_800", "vehicleid_800 and vehicleid_1600"),
    ("market1501, folder", "market1501", "market1501 and folder"),
    ("market1501", "list", "market1501 and list"),
    ("folder, list", "folder", "list and folder"),
])
def test_sets_that_share_training_images_are_refused(
    train: str, test: str, named: str, tmp_path: Path
) -> None:
    market, _ = trees.market1501(tmp_path), trees.vehicleid(tmp_path)
    (tmp_path / "link.jpg").symlink_to(next(iter(market.labels("train"))))
    gallery = sorted(market.labels("gallery"))
    (tmp_path / "list.csv").write_text(
        f"path,identity,split\nlink.jpg,1,query\n{gallery[0]},1,gallery\n{gallery[1]},2,train\n"
    )
    config = config_of(
        tmp_path / "runs", f"data.train=[{train}]", f"data.test=[{test}]",
        f"data.root={tmp_path}", f"data.roots={{list: {tmp_path / 'list.csv'}}}",
    )
    with pytest.raises(UserError, match=f"^data: {named} share [14] images, such as {tmp_path}"):
        datasets.load_datasets(config.data, tmp_path)


def test_images_are_distinguished_without_a_look_at_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.market1501(tmp_path / "one")
    trees.market1501(tmp_path / "two")
    config = config_of(
        tmp_path / "runs", "data.train=[market1501, folder]", "data.test=[market1501]",
        f"data.roots={{market1501: {tmp_path / 'one'}, folder: {tmp_path / 'two'}}}",
    )
    looked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **more: looked.append(path) or real(path))
    assert len(datasets.load_datasets(config.data, tmp_path).train) == 2
    assert not [path for path in looked if str(path).endswith(".jpg")]


def test_a_fingerprint_that_an_older_version_remembered_is_not_used(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    words = ("data.name=list", f"data.root={write_list(images, [1, 2, 3, 3])}")
    config = config_of(tmp_path / "runs", *words)
    pinned = pin(config)
    [memory] = (tmp_path / "runs" / "cache" / "fingerprints").iterdir()
    older = hashlib.sha256(f"list\t{images / 'mine.csv'}".encode()).hexdigest()[:16]
    [dataset] = datasets.load_datasets(config.data, tmp_path).train
    kept = memory.read_text().replace(dataset.fingerprint, "0")
    memory.with_name(f"{older}.json").write_text(kept)
    memory.unlink()
    assert pin(config) == pinned


def test_a_list_has_a_validation_part_where_it_says_so(tmp_path: Path) -> None:
    file = write_list(tmp_path, [1, 2, 3, 3])
    words = ("data.name=list", "data.validation=0")
    assert not datasets.has_validation(config_of(tmp_path, *words, f"data.root={file}").data)
    (tmp_path / "v.jpg").touch()
    file.with_name("own.csv").write_text(file.read_text() + "v.jpg,9,0,validation\n")
    own = config_of(tmp_path, *words, f"data.root={tmp_path / 'own.csv'}")
    assert datasets.has_validation(own.data)
    assert not datasets.has_validation(config_of(tmp_path, "data.validation=0").data)


def test_one_training_list_with_several_test_lists_shares_nothing(tmp_path: Path) -> None:
    trees.vehicleid(tmp_path)
    config = config_of(
        tmp_path / "runs", "data.train=[vehicleid_800]",
        "data.test=[vehicleid_800, vehicleid_1600]", f"data.root={tmp_path}",
    )
    assert len(datasets.load_datasets(config.data, tmp_path).test) == 2


def test_the_same_files_without_the_unlisted_images_are_another_run(tmp_path: Path) -> None:
    trees.veri776(tmp_path / "images")
    words = ("data.name=veri776", f"data.root={tmp_path / 'images'}")
    kept = config_of(tmp_path / "runs", *words)
    dropped = config_of(tmp_path / "runs", *words, "data.unlisted_views=drop")
    assert "unlisted_views" not in to_mapping(kept, with_runtime=False)["data"]
    seen: Fingerprints = {}  # of one command: a sweep over both
    pinned = [pin(config, seen) for config in (kept, dropped)]
    assert pinned[0].data.fingerprint != pinned[1].data.fingerprint
    assert [pin(config) for config in (kept, dropped)] == pinned
    for config, count in zip(pinned, (4, 3), strict=True):
        found = datasets.load_datasets(config.data, tmp_path)
        check_pinned(config, found)
        assert len(found.train[0].train) == count


def test_runs_without_a_weights_file_keep_the_names_that_they_had(tmp_path: Path) -> None:
    config = config_of(tmp_path / "runs")
    assert "fingerprint" not in to_mapping(pin(config), with_runtime=False)["model"]
    assert to_mapping(pin(config))["model"]["fingerprint"] == ""


def test_a_run_does_not_start_from_a_file_that_has_changed_or_gone(
    weights: Path, tmp_path: Path
) -> None:
    model = pin(config_of(tmp_path / "runs", f"model.weights={weights}")).model
    check_weights(model)
    change(weights)
    with pytest.raises(UserError, match="has changed since this run was made"):
        check_weights(model)
    weights.unlink()
    with pytest.raises(UserError, match="no longer exists"):
        check_weights(model)
    check_weights(replace(model, weights="shipped", fingerprint=""))


def test_what_is_to_be_fetched_is_checked_first(weights: Path) -> None:
    fetch("svll-tiny", str(weights))
    fetch("svll-tiny", "shipped")
    with pytest.raises(UserError, match="open_clip knows no model 'ViT-Q'"):
        fetch("ViT-Q", "openai")
    with pytest.raises(UserError, match="'openay' is neither a file nor a tag"):
        fetch("ViT-B-16-quickgelu", "openay")
