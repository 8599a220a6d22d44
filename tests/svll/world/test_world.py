"""The synthetic world is the same for the same seed, a real problem, and safe to write."""

import json
import os
import re
import runpy
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.base.errors import UserError
from svll.data.readers.drawn_world import load_world
from svll.world import world as synthetic
from svll.world.persons import Person
from svll.world.vehicles import VIEWS
from svll.world.world import (
    SIZES,
    World,
    cameras_of,
    caption,
    ensure_world,
    is_occluded,
    named_world,
    render,
    shots_of,
    view_of,
    vocabulary,
    write_world,
)

BASELINE = Path(__file__).parents[2] / "benchmarks" / "synthetic_baseline.py"
SMALLEST = World(train_identities=3, test_identities=4, shots=2)
CARS = replace(SIZES["tiny"], kind="vehicle", height=0, width=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(SIZES["tiny"], tmp_path_factory.mktemp("worlds") / "tiny")


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_in_one_process_or_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = contents(write_world(SMALLEST, tmp_path / "alone"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(synthetic, "_CHUNK", 10)
    assert contents(write_world(SMALLEST, tmp_path / "together")) == alone


def test_another_seed_gives_other_images() -> None:
    other = replace(SMALLEST, seed=2)
    assert not np.array_equal(render(SMALLEST, 1, 0, 0), render(other, 1, 0, 0))


def test_a_larger_world_contains_the_smaller_one(tmp_path: Path) -> None:
    small = contents(write_world(SMALLEST, tmp_path / "small"))
    larger = replace(SMALLEST, train_identities=5, test_identities=6)
    large = contents(write_world(larger, tmp_path / "large"))
    images = [name for name in small if name.endswith(".jpg")]
    assert len(images) > 50
    assert all(large[name] == small[name] for name in images)


def test_worlds_of_disjoint_ranges_share_no_identity() -> None:
    further = replace(SMALLEST, first_identity=100)
    ids = [{*world.train_ids, *world.test_ids} for world in (SMALLEST, further)]
    assert ids[0].isdisjoint(ids[1])
    assert not set(SMALLEST.train_ids) & set(SMALLEST.test_ids)
    assert [len(SMALLEST.train_ids), len(SMALLEST.test_ids)] == [3, 4]
    assert [len(further.train_ids), len(further.test_ids)] == [3, 4]


def test_a_written_world_is_read_as_market1501(tiny: Path) -> None:
    world, dataset = SIZES["tiny"], load_world(tiny)
    assert set(dataset.train.identities) == set(world.train_ids)
    assert set(dataset.query.identities) == set(world.test_ids)
    assert set(dataset.gallery.identities) == {0, *world.test_ids}
    query = dataset.query
    pairs = Counter(zip(query.identities.tolist(), query.cameras.tolist(), strict=True))
    expected = {(i, c): 1 for i in world.test_ids for c in cameras_of(world, i)}
    assert pairs == expected
    assert np.count_nonzero(dataset.gallery.identities == 0) == world.distractors
    assert len(list((tiny / "bounding_box_test").glob("-1_*.jpg"))) == world.junk > 0
    assert not dataset.train.views.any()


def test_every_query_has_a_match_in_another_camera(tiny: Path) -> None:
    dataset = load_world(tiny)
    for identity, camera in zip(dataset.query.identities, dataset.query.cameras, strict=True):
        cameras = dataset.gallery.cameras[dataset.gallery.identities == identity]
        assert (cameras != camera).any()


def test_written_images_are_of_slightly_different_sizes(tiny: Path) -> None:
    sizes = set()
    for path in load_world(tiny).train.paths:
        with Image.open(path) as image:
            assert image.mode == "RGB"
            sizes.add(image.size)
    widths, heights = zip(*sizes, strict=True)
    assert len(sizes) > 20
    assert 43 <= min(widths) < max(widths) <= 53
    assert 86 <= min(heights) < max(heights) <= 106


def test_vehicles_are_written_with_the_side_that_is_seen(tmp_path: Path) -> None:
    dataset = load_world(write_world(CARS, tmp_path / "cars"))
    seen = dict(zip(dataset.train.paths, dataset.train.views.tolist(), strict=True))
    for shot in shots_of(CARS):
        if shot.folder == "bounding_box_train":
            path = str(tmp_path / "cars" / shot.folder / shot.name)
            assert seen[path] == view_of(CARS, shot.identity, shot.camera, shot.shot)
    assert set(seen.values()) == set(range(len(VIEWS)))


def test_a_render_has_the_size_asked_for() -> None:
    assert render(SMALLEST, 1, 0, 0).shape == (96, 48, 3)
    assert render(CARS, 1, 0, 0).shape == (80, 80, 3)
    pixels = render(SMALLEST, 1, 0, 0, size=(64, 32))
    assert pixels.shape == (64, 32, 3)
    assert pixels.dtype == np.uint8


def test_garment_colours_are_shared_by_several_identities() -> None:
    persons = [synthetic._person(1, i) for i in SIZES["small"].test_ids]
    uppers = Counter(person.upper.colour for person in persons)
    outfits = Counter((person.upper.colour, person.lower.colour) for person in persons)
    assert min(uppers.values()) >= 2
    assert sum(count for count in outfits.values() if count > 1) > len(persons) / 2


def test_no_two_persons_are_alike() -> None:
    people = (Person(np.random.default_rng(number)) for number in range(300))
    looks = {json.dumps(person, default=vars) for person in people}
    assert len(looks) == 300


def test_a_colour_histogram_neither_solves_the_world_nor_fails(tmp_path: Path) -> None:
    baseline = runpy.run_path(str(BASELINE))
    dataset = load_world(write_world(World(2, 24), tmp_path / "world"))
    scores = {
        name: baseline["score"](dataset, ranker)[0] for name, ranker in baseline["RANKERS"].items()
    }
    assert max(scores.values()) < 0.5
    assert max(scores.values()) > 0.15


def test_figures_are_occluded_at_the_requested_rate() -> None:
    world = replace(SMALLEST, occlusion=0.3)
    shots = [(identity, camera, 0) for identity in range(1, 401) for camera in range(6)]
    share = np.mean([is_occluded(world, *shot) for shot in shots])
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(shots)) ** 0.5


def test_only_occluded_images_differ_from_a_world_without_occlusion() -> None:
    world, free = replace(SMALLEST, occlusion=0.5), replace(SMALLEST, occlusion=0.0)
    hidden = []
    for shot in ((identity, camera, 0) for identity in range(1, 9) for camera in range(6)):
        pixels, clear = render(world, *shot).astype(int), render(free, *shot).astype(int)
        assert is_occluded(world, *shot) or np.array_equal(pixels, clear)
        if is_occluded(world, *shot):
            hidden.append(np.mean(np.abs(pixels - clear).max(axis=2) > 8))
    assert np.mean(hidden) > 0.1
    assert len(hidden) > 10


def test_captions_use_the_vocabulary_and_all_of_it() -> None:
    used: set[str] = set()
    for world in (SMALLEST, CARS):
        for identity in range(1, 300):
            text = caption(world, identity, identity % 6, 0)
            assert re.fullmatch(r"a photo of [a-z, ]+\.", text)
            used.update(re.findall(r"[a-z]+", text))
    assert used == set(vocabulary())


def test_captions_name_the_garments() -> None:
    for identity in range(1, 60):
        person, text = synthetic._person(1, identity), caption(SMALLEST, identity, 0, 0)
        assert person.upper.colour in text
        assert person.lower.kind in text
        assert person.hat_name in text or "wearing" not in text or not person.hat


def test_a_world_is_named_by_its_size_or_its_number_of_identities() -> None:
    assert named_world("small", seed=3) == replace(SIZES["small"], seed=3)
    assert named_world("5", "vehicle") == named_world(5, "vehicle") == World(5, 5, kind="vehicle")
    for wrong in ("huge", "1", "-3"):
        with pytest.raises(UserError, match="give tiny, small or a number"):
            named_world(wrong)


def test_a_folder_is_named_by_its_world_and_written_once(tmp_path: Path) -> None:
    first = ensure_world(SMALLEST, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in first.rglob("*.jpg")}
    assert ensure_world(SMALLEST, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.jpg")} == written
    assert ensure_world(replace(SMALLEST, occlusion=0.5), tmp_path) != first


def test_a_world_that_has_lost_images_is_written_anew(tmp_path: Path) -> None:
    root = write_world(SMALLEST, tmp_path / "world")
    whole = contents(root)
    for path in list((root / "query").iterdir()):
        path.unlink()
    assert contents(write_world(SMALLEST, root)) == whole
    assert os.listdir(tmp_path) == ["world"]


def test_writers_may_race(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: ensure_world(SMALLEST, tmp_path), range(3)))
    assert len(set(folders)) == 1
    assert os.listdir(tmp_path) == [folders[0].name]
    assert len(load_world(folders[0]).train) > 0


def test_the_slower_of_two_writers_leaves_the_published_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, inodes = synthetic._fill, []

    def overtaken(world: World, folder: Path) -> None:
        fill(world, folder)
        monkeypatch.setattr(synthetic, "_fill", fill)
        inodes.append(ensure_world(world, tmp_path).stat().st_ino)

    monkeypatch.setattr(synthetic, "_fill", overtaken)
    assert ensure_world(SMALLEST, tmp_path).stat().st_ino == inodes[0]
    assert len(os.listdir(tmp_path)) == 1


def test_a_failed_writer_leaves_nothing_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "_write_shots", full)
    with pytest.raises(UserError, match=r"could not be written to .*No space left on device"):
        ensure_world(SMALLEST, tmp_path)
    assert os.listdir(tmp_path) == []


def test_folders_with_something_else_in_them_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "query").mkdir()
    with pytest.raises(UserError, match="is not empty and holds no synthetic world"):
        write_world(SMALLEST, tmp_path)
    root = write_world(SMALLEST, tmp_path / "world")
    with pytest.raises(UserError, match="holds another synthetic world"):
        write_world(replace(SMALLEST, seed=2), root)


def test_a_world_that_nobody_can_draw_is_refused_at_once() -> None:
    for size in ("9" * 5000, "-5", "1e3", "\u0663", "\u00bd", " 5"):
        with pytest.raises(UserError, match=r"^no synthetic world of size "):
            named_world(size)
    for world in ((10**6, 2, 3), (2, 10**6, 3), (2, 2, 10**18)):
        with pytest.raises(UserError, match=r"is too large; at most 200000 images per camera"):
            World(*world[:2], shots=world[2])
    assert named_world("0005") == World(5, 5)
