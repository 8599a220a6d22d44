"""What a run would refuse is refused before it has a folder, and the training part is sized."""

import logging
import re
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from svll.config import RECIPES, Config
from svll.data.datasets import load_datasets
from svll.data.sampler import identity_batches
from svll.data.splits import split
from svll.runs.preflight import TrainingSize, preflight
from tests.svll.data.trees import picture


def config_of(name: str, *overrides: str) -> Config:
    settings = read_recipe(RECIPES / f"{name}.yaml", Config)
    return build(Config, [*settings, *parse_overrides(overrides)])


def own_list(folder: Path, identities: int, images: int = 4, part: str = "train") -> Path:
    """A list of so many training identities, and two to test with."""
    lines = [f"t{i}_{n}.jpg,t{i},{part}" for i in range(identities) for n in range(images)]
    lines += [f"{part}_{i}.jpg,{i},{part}" for part in ("query", "gallery") for i in (1, 2)]
    for line in lines:
        picture(folder / line.partition(",")[0])
    (folder / "own.csv").write_text("\n".join(["path,identity,split", *lines]))
    return folder / "own.csv"


# --- sizes ---


def test_a_world_is_counted_as_it_will_be_drawn(tmp_path: Path) -> None:
    config = config_of("synthetic_tiny", "data.validation=0", f"run.runs={tmp_path}")
    drawn = split(load_datasets(config.data, tmp_path), validation=0.0, seed=1)
    labels = drawn.side_labels
    assert preflight(config) == TrainingSize(
        len(drawn.train), drawn.identities, labels.camera_count, labels.view_count, "to be drawn"
    )


def test_files_are_counted_where_there_are_any(tmp_path: Path) -> None:
    config = config_of("synthetic_tiny", "data.validation=0")
    (dataset,) = load_datasets(config.data, tmp_path).train
    root = Path(dataset.train.paths[0]).parent.parent
    there = config_of("synthetic_tiny", "data.name=folder", f"data.root={root}")
    found = preflight(there)
    assert found.source == "as found"
    # a quarter of the 8 identities is held out
    assert found.identities == 6
    assert found.images < len(dataset.train)
    parts = split(load_datasets(there.data, tmp_path), validation=0.25, seed=there.seed)
    order = identity_batches(parts.labels, batch=16, instances=4, seed=there.seed, epoch=1)
    assert found.batches == len(order)
    both = config_of("synthetic_tiny", "data.train=[synthetic, folder]", "data.test=[folder]",
                     f"data.roots={{folder: {root}}}", "data.validation=0")
    assert preflight(both).identities == 2 * 8


def test_a_benchmark_that_is_not_there_is_as_published() -> None:
    assert preflight(config_of("market1501", "model.weights=null")) == TrainingSize(
        images=12_936, identities=751, cameras=6, views=1, source="as published"
    )
    with pytest.raises(UserError, match=r"the list's file is needed: data\.root=FILE\.csv"):
        preflight(config_of("synthetic_tiny", "data.name=list"))
    with pytest.raises(UserError, match=r"the folder of your images is needed: data\.root=DIR"):
        preflight(config_of("synthetic_tiny", "data.name=folder"))


# --- refusals ---


@pytest.mark.parametrize("identities", [2, 3, 10])
def test_the_batch_that_a_refusal_names_is_taken_and_the_largest(
    tmp_path: Path, identities: int
) -> None:
    words = ("data.name=list", f"data.root={own_list(tmp_path, identities)}", "data.validation=0")
    with pytest.raises(UserError) as caught:
        preflight(config_of("synthetic_tiny", *words, "stage2.batch=64"))
    assert "asks for 16 identities at a time" in str(caught.value)
    assert f"the training part has {identities}; add stage2.batch=" in str(caught.value)
    [batch] = re.findall(r"add stage2\.batch=(\d+)", str(caught.value))
    assert preflight(config_of("synthetic_tiny", *words, f"stage2.batch={batch}")).batches == 1
    with pytest.raises(UserError, match="at a time"):
        preflight(config_of("synthetic_tiny", *words, f"stage2.batch={int(batch) + 4}"))


def test_all_faults_of_a_small_list_are_reported_at_once(tmp_path: Path) -> None:
    words = ["data.name=list", f"data.root={own_list(tmp_path, 3)}"]
    with pytest.raises(UserError) as caught:
        preflight(config_of("synthetic_tiny", *words))
    assert str(caught.value).splitlines() == [
        "data.validation=0.25: of 3 training identities 1 would be held out and 2 trained on; "
        "each part needs at least 2; add data.validation=0",
        "then: stage2.batch=16 asks for 4 identities at a time, the training part has 3; add "
        "stage2.batch=12",
    ]
    named = re.findall(r"add (\S+)", str(caught.value))
    assert preflight(config_of("synthetic_tiny", *words, *named)).batches == 1
    with pytest.raises(UserError, match=r"no such file$|no such file;"):
        preflight(config_of("synthetic_tiny", "data.name=list", f"data.root={tmp_path}/no.csv"))


def test_a_batch_is_shared_by_all_ranks() -> None:
    config = config_of("synthetic_tiny", "stage2.batch=16")
    with pytest.raises(UserError, match=r"not a multiple of the 3 ranks; add stage2\.batch=12"):
        preflight(config, 3)
    assert preflight(config, 2)
    with pytest.raises(UserError, match="use fewer ranks or more identities"):
        preflight(config, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.weights=nowhere.pt"], "model.weights: nowhere.pt: no such file"),
        (["model.name=ViT-B-16", "model.weights=shipped"], "only svll-tiny has shipped weights"),
        (["model.name=ViT-B-17", "model.weights=null"], "open_clip knows no model 'ViT-B-17'"),
        (["data.stage=$NOWHERE"], r"data.stage=$NOWHERE: $NOWHERE is not set on"),
    ],
)
def test_what_cannot_be_found_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        preflight(config_of("synthetic_tiny", *words))


def test_side_information_that_a_list_cannot_give_is_told_as_in_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("synthetic_tiny", "data.name=list", "model.sie=camera",
                       f"data.root={own_list(tmp_path, 10)}", "data.validation=0")
    with caplog.at_level(logging.INFO):
        assert preflight(config).cameras == 0
    assert "images are unknown: model.sie=camera is none here" in caplog.text
