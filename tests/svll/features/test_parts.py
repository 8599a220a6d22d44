"""Part files: whatever ranks and kills do, every row comes into the cache once, as it was."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup, read_features, write_features
from svll.features import parts as feature_parts
from svll.features.parts import merge_parts, missing_rows, write_part
from tests.svll.base.test_feature_file import assert_same, group

ROOT = Path(__file__).parents[3]


def shares(total, ranks):
    """Each rank's rows as a padding sampler deals them: in turn, the first again at the end."""
    padded = np.arange(-(-total // ranks) * ranks) % total
    return [padded[rank::ranks] for rank in range(ranks)]


def merge(folder, path, groups):
    """Merge parts whose images are numbered through all groups."""
    bounds = np.cumsum([0, *(len(group.identities) for group in groups.values())])
    rows = {name: np.arange(*bounds[place : place + 2]) for place, name in enumerate(groups)}
    merge_parts(folder, path, groups, rows, dataset="d", model="m")


def labelled(total):
    return {"query": group(total // 3, 6), "gallery": group(total - total // 3, 6, seed=1)}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("total", [53, 64])
def test_no_row_is_lost_or_doubled_with_any_number_of_ranks(tmp_path, ranks, total):
    expected = labelled(total)
    features = np.concatenate([g.features for g in expected.values()])
    for rank, rows in enumerate(shares(total, ranks)):
        for piece in np.array_split(rows, 2):
            write_part(tmp_path / "parts", rank, piece, features[piece])
    merge(tmp_path / "parts", tmp_path / "f.h5", expected)
    read = read_features(tmp_path / "f.h5")
    for name in expected:
        assert_same(read.groups[name], expected[name])
    assert os.listdir(tmp_path / "parts") == []


def test_a_killed_attempt_resumes_with_another_number_of_ranks(tmp_path):
    expected = labelled(53)
    features = np.concatenate([g.features for g in expected.values()])
    for rank, rows in enumerate(shares(53, 4)[:3]):  # the last rank wrote nothing
        write_part(tmp_path, rank, rows, features[rows])
    (tmp_path / ".part-00003-abc.h5.xyz.tmp").write_bytes(b"left by the kill")
    left = missing_rows(tmp_path, 53)
    assert left.tolist() == list(range(3, 53, 4))
    for rank, rows in enumerate(np.array_split(left, 2)):
        write_part(tmp_path, rank, rows, features[rows])
    merge(tmp_path, tmp_path / "f.h5", expected)
    for name, part in read_features(tmp_path / "f.h5").groups.items():
        assert_same(part, expected[name])


def test_merging_refuses_lost_rows_and_parts_of_something_else(tmp_path):
    expected = labelled(20)
    features = np.concatenate([g.features for g in expected.values()])
    rows = np.arange(18)
    write_part(tmp_path, 0, rows, features[rows])
    with pytest.raises(UserError, match=r"2 of 20 rows are in no part file \(first: 18\)"):
        merge(tmp_path, tmp_path / "f.h5", expected)
    write_part(tmp_path, 1, np.array([18, 19]), np.ones((2, 4), np.float32))
    with pytest.raises(
        UserError, match=r"part-0000\d.*: features are float32 \[\d\], those of other"
    ):
        merge(tmp_path, tmp_path / "f.h5", expected)
    write_part(tmp_path, 1, np.array([20]), np.ones((1, 6), np.float32))
    with pytest.raises(UserError, match=r"part-00001.*: holds row 20, the dataset has 20"):
        merge(tmp_path, tmp_path / "f.h5", expected)
    assert not Path(tmp_path / "f.h5").exists()


def test_a_damaged_part_is_reported_with_what_to_do_and_no_cache_is_made(tmp_path):
    expected = labelled(20)
    features = np.concatenate([g.features for g in expected.values()])
    write_part(tmp_path, 0, np.arange(20), features)
    (part,) = tmp_path.glob("part-*.h5")
    content = part.read_bytes()
    place = content.index(features[3].tobytes())
    for damaged, fault in (
        (content[:place] + b"\xff" + content[place + 1 :], "rows 0 to 19 of features are damaged"),
        (content[:place], "a damaged part"),
        (content.replace(b"row\0", b"low\0"), "damaged, or changed after it was written"),
    ):
        part.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{part.name}: {fault}.*; remove it and give the"):
            merge(tmp_path, tmp_path / "f.h5", expected)
        assert os.listdir(tmp_path) == [part.name]


def test_parts_beyond_those_that_may_be_open_at_once_are_merged_too(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_parts, "OPEN", 3)
    features = group(4000, 256).features  # in blocks of 1,000 rows
    labels = np.zeros(4000, np.int64)
    for rank in range(8):
        rows = np.flatnonzero(np.arange(4000) // 10 % 8 == rank)
        write_part(tmp_path / "parts", rank, rows, features[rows])
    before = len(os.listdir("/proc/self/fd"))
    merge(
        tmp_path / "parts", tmp_path / "f.h5", {"gallery": FeatureGroup(None, labels, labels)}
    )
    assert len(os.listdir("/proc/self/fd")) == before
    read = read_features(tmp_path / "f.h5").groups["gallery"].features
    np.testing.assert_array_equal(read, features)


def test_an_image_may_be_in_several_groups_in_any_order(tmp_path):
    rng = np.random.default_rng(3)
    features = rng.standard_normal((30, 6)).astype(np.float16)
    rows = {"query": np.array([29, 3, 3, 17]), "gallery": rng.permutation(30)}
    groups = {
        name: FeatureGroup(features[own], own, own % 3, paths=[str(row) for row in own])
        for name, own in rows.items()
    }
    for rank, own in enumerate(np.array_split(rng.permutation(30), 4)):
        write_part(tmp_path / "parts", rank, own, features[own])
    merge_parts(
        tmp_path / "parts", tmp_path / "f.h5", groups, rows, dataset="d", model="m",
        protocol="all_gallery", key="abc",
    )
    read = read_features(tmp_path / "f.h5")
    assert (read.protocol, read.key) == ("all_gallery", "abc")
    for name, own in rows.items():
        assert read.groups[name].features.dtype == np.float16
        np.testing.assert_array_equal(read.groups[name].features, features[own])
        assert read.groups[name].paths == tuple(str(row) for row in own)


def test_merging_holds_no_more_than_blocks_of_features(tmp_path):
    features = np.random.default_rng(0).standard_normal((30_000, 256)).astype(np.float32)
    labels = np.zeros(30_000, np.int64)
    for rank in range(3):  # batches of 100 in turn, as ranks take them
        rows = np.flatnonzero(np.arange(30_000) // 100 % 3 == rank)
        write_part(tmp_path / "parts", rank, rows, features[rows])
    tracemalloc.start()
    merge(
        tmp_path / "parts", tmp_path / "f.h5", {"gallery": FeatureGroup(features, labels, labels)}
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20 < features.nbytes / 3
    np.testing.assert_array_equal(
        read_features(tmp_path / "f.h5").groups["gallery"].features, features
    )


def test_a_merge_that_is_killed_leaves_the_parts_and_the_old_cache(tmp_path):
    expected = labelled(20)
    features = np.concatenate([g.features for g in expected.values()])
    write_part(tmp_path / "parts", 0, np.arange(20), features)
    code = (
        "import os, sys; import numpy as np\n"
        "from svll.base import feature_file as f\n"
        "from svll.features import parts as p\n"
        "f.hdf5.put_column = lambda *_: os.kill(os.getpid(), 9)\n"
        "ids = np.zeros(20, int); g = f.FeatureGroup(None, ids, ids)\n"
        "rows = {'query': np.arange(20)}\n"
        "p.merge_parts(*sys.argv[1:], {'query': g}, rows, dataset='d', model='m')"
    )
    path = tmp_path / "f.h5"
    for old in (False, True):
        if old:
            write_features(path, labelled(9), dataset="old", model="m")
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "parts", path], cwd=ROOT)
        assert done.returncode == -9
        assert path.exists() == old
        assert not old or read_features(path).dataset == "old"
        assert len(list((tmp_path / "parts").iterdir())) == 1
    merge(tmp_path / "parts", path, expected)
    for name in expected:
        assert_same(read_features(path).groups[name], expected[name])
