"""Feature caches are read as they were written, and every fault is reported."""

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from harness.base.errors import UserError
from harness.features import hdf5
from svll.base.feature_file import FeatureGroup, open_features, read_features, write_features


def group(rows=7, width=5, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return FeatureGroup(
        features=rng.standard_normal((rows, width)).astype(dtype),
        identities=rng.integers(-1, 4, rows),
        cameras=rng.integers(0, 3, rows),
        views=rng.integers(0, 8, rows),
        paths=[f"/bilder/größe {row}.jpg" for row in range(rows)],
    )


def assert_same(read, written):
    assert read.features.dtype == written.features.dtype
    np.testing.assert_array_equal(read.features, written.features)
    np.testing.assert_array_equal(read.identities, written.identities)
    np.testing.assert_array_equal(read.cameras, written.cameras)
    np.testing.assert_array_equal(read.views, written.views)
    assert list(read.paths) == list(written.paths)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rows", [0, 1, 7, 3000])
def test_a_cache_is_read_as_it_was_written(tmp_path, dtype, rows):
    written = {"query": group(3, 400, dtype), "gallery": group(rows, 400, dtype, seed=1)}
    write_features(tmp_path / "new folder" / "f.h5", written, dataset="market1501", model="ab12")
    read = read_features(tmp_path / "new folder" / "f.h5")
    assert (read.dataset, read.model) == ("market1501", "ab12")
    assert read.created.endswith("+00:00")
    assert set(read.groups) == set(written)
    for name in written:
        assert_same(read.groups[name], written[name])
    assert os.listdir(tmp_path / "new folder") == ["f.h5"]


def test_the_file_on_disk_is_the_documented_format(tmp_path):
    write_features(tmp_path / "f.h5", {"query": group()}, dataset="d", model="m")
    with h5py.File(tmp_path / "f.h5") as file:
        assert dict(file.attrs).keys() == {
            "format", "version", "dataset", "model", "created", "protocol", "key", "complete",
        }  # fmt: skip
        assert (file.attrs["format"], file.attrs["version"]) == ("svll-features", 1)
        query = file["query"]
        assert set(query) == {"features", "features_sums", "identity", "camera", "view", "path"}
        assert query["features"].chunks == (7, 5)
        assert query["features"].fletcher32
        assert {query[name].dtype for name in ("identity", "camera", "view")} == {np.dtype("i8")}
        assert query["path"].asstr()[0] == "/bilder/größe 0.jpg"


def test_paths_that_are_not_utf8_come_back_as_they_were(tmp_path):
    odd = os.fsdecode(b"/images/\xff\xfe.jpg")
    one = FeatureGroup(np.ones((1, 2), np.float32), np.ones(1, int), np.ones(1, int), paths=[odd])
    write_features(tmp_path / "f.h5", {"query": one}, dataset="d", model="m")
    assert read_features(tmp_path / "f.h5").groups["query"].paths == (odd,)


def foreign(path, *, leave_out=(), **changes):
    """A cache as another toolbox might write it: only what is required."""
    with h5py.File(path, "w") as file:
        values = {
            "query/features": np.ones((4, 3), np.float32),
            "query/identity": np.arange(4, dtype=np.int32),
            "query/camera": np.zeros(4, np.uint8),
        }
        for name, value in (values | changes.pop("datasets", {})).items():
            if name not in leave_out:
                file[name] = value
        attributes = {"format": "svll-features", "version": 1, "complete": True} | changes
        file.attrs.update({k: v for k, v in attributes.items() if k not in leave_out})
    return path


def test_a_foreign_file_needs_only_features_identity_and_camera(tmp_path):
    read = read_features(foreign(tmp_path / "f.h5", format=np.bytes_(b"svll-features")))
    query = read.groups["query"]
    assert query.identities.tolist() == [0, 1, 2, 3]
    assert query.identities.dtype == query.cameras.dtype == np.int64
    assert (query.views, query.paths) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leave_out": ["complete"]}, "not complete: its writer was stopped"),
        ({"complete": False}, "not complete"),
        ({"version": 2}, "format version 2, this program reads 1"),
        ({"leave_out": ["format"]}, "attribute format is None, expected 'svll-features'"),
        ({"format": "other"}, "attribute format is 'other'"),
        ({"leave_out": ["query/camera"]}, "query/camera is missing"),
        ({"datasets": {"query/identity": np.arange(5)}}, r"identity has shape \[5\]; .* \[4\]"),
        ({"datasets": {"query/camera": np.ones(4)}}, "query/camera is float64; expected integers"),
        ({"datasets": {"query/identity": np.array([1, 2, 3, 2**63], np.uint64)}},
         r"query/identity: number 3 is 9223372036854775808; labels are not"),
        ({"datasets": {"query/features": np.ones(4)}}, r"features is float64 \[4\]; .* \[n, d\]"),
        ({"datasets": {"query/path": np.ones(4)}}, "query/path is float64; expected UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named_with_its_fault(tmp_path, changes, message):
    path = foreign(tmp_path / "odd.h5", **changes)
    with pytest.raises(UserError, match=message) as error:
        read_features(path)
    assert str(error.value).startswith(str(path))


def test_all_faults_of_a_file_are_named_at_once(tmp_path):
    path = foreign(tmp_path / "f.h5", leave_out=["query/features", "query/camera"])
    with pytest.raises(UserError) as error:
        read_features(path, groups=("query", "gallery"))
    assert str(error.value).splitlines()[1:] == [
        "  query/features is missing",
        "  query/camera is missing",
        "  there is no group gallery (groups: query)",
    ]


def test_missing_cut_damaged_and_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"gone.h5: no such file"):
        read_features(tmp_path / "gone.h5")
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    with pytest.raises(UserError, match=r"text.h5: cannot be read as HDF5"):
        read_features(text)
    whole = tmp_path / "whole.h5"
    write_features(whole, {"query": group(500, 50)}, dataset="d", model="m")
    content = whole.read_bytes()
    cut = tmp_path / "cut.h5"
    cut.write_bytes(content[:5000])
    with pytest.raises(UserError, match=r"cut.h5: cannot be read as HDF5"):
        read_features(cut)
    place = content.index(group(500, 50).features[100].tobytes())
    flipped = tmp_path / "flipped.h5"
    flipped.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(UserError, match=r"flipped.h5: rows 0 to 499 of query/features are damaged"):
        read_features(flipped)
    with h5py.File(whole) as file:
        place = file["query/identity"].id.get_chunk_info(0).byte_offset
    flipped.write_bytes(content[:place] + b"\xf0" + content[place + 1 :])
    with pytest.raises(UserError, match=r"flipped.h5: cannot be read as HDF5"):
        read_features(flipped)


def test_a_cache_can_be_read_while_another_process_holds_it_open_for_writing(tmp_path):
    path = foreign(tmp_path / "f.h5")
    hold = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(flush=True); input()"
    writer = subprocess.Popen(
        [sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout.readline() == b"\n"
        assert len(read_features(path).groups["query"].features) == 4
    finally:
        writer.communicate(b"\n")


def test_a_full_disk_is_an_error_with_bytes_before_writing(tmp_path, monkeypatch):
    usage = hdf5.shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(hdf5.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        UserError, match=r"f.h5: no room: 1,\d\d\d,\d\d\d .*needed, 100,000 are free"
    ):
        write_features(tmp_path / "f.h5", {"query": group(1000, 250)}, dataset="d", model="m")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, code):
    write_features(tmp_path / "f.h5", {"query": group()}, dataset="old", model="m")

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(hdf5.os, "posix_fallocate", refuse)
    with pytest.raises(UserError, match=r"f.h5: no room"):
        write_features(tmp_path / "f.h5", {"query": group()}, dataset="new", model="m")
    assert os.listdir(tmp_path) == ["f.h5"]
    assert read_features(tmp_path / "f.h5").dataset == "old"


def test_space_is_reserved_so_that_hdf5_never_meets_a_full_disk(tmp_path, monkeypatch):
    reserved = []
    plain = os.posix_fallocate

    def note(handle, offset, size):
        reserved.append(size)
        plain(handle, offset, size)

    monkeypatch.setattr(hdf5.os, "posix_fallocate", note)
    for rows, width in ((0, 5), (1, 1), (4000, 3), (300, 2000), (3, 10**6), (3, 2**17)):
        write_features(tmp_path / "f.h5", {"query": group(rows, width)}, dataset="d", model="m")
        # A file that outgrew what was reserved would be larger.
        assert (tmp_path / "f.h5").stat().st_size == reserved[-1]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file/f.h5: cannot be written: (Not a directory|File exists)"
    ):
        write_features(tmp_path / "file" / "f.h5", {"query": group()}, dataset="d", model="m")


def test_an_error_of_the_body_passes_as_it_is(tmp_path):
    write_features(tmp_path / "f.h5", {"query": group()}, dataset="d", model="m")
    with pytest.raises(OSError, match="mine"), open_features(tmp_path / "f.h5"):
        raise OSError("mine")


def test_importing_the_cache_imports_no_heavy_package():
    code = "import sys, svll.base.feature_file; print(*(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "deepspeed", "nvidia", "open_clip"} & set(done.stdout.split())



def test_large_labels_come_back_as_they_were(tmp_path):
    labels = np.array([10**12, 10**18 - 1, -1], np.int64)
    cameras = np.array([70_000, 2**31, 2**40], np.int64)
    views = np.array([300, 2**31, 0], np.int64)
    written = FeatureGroup(np.ones((3, 2), np.float32), labels, cameras, views)
    write_features(tmp_path / "f.h5", {"query": written}, dataset="list", model="m")
    read = read_features(tmp_path / "f.h5").groups["query"]
    assert (read.identities == labels).all()
    assert (read.cameras == cameras).all()
    assert (read.views == views).all()
    small = {"query/identity": np.array([1, 2, 3, 2**63 - 1], np.uint64)}
    found = read_features(foreign(tmp_path / "u.h5", datasets=small)).groups["query"]
    assert found.identities.tolist() == [1, 2, 3, 2**63 - 1]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("query/identity", np.array([0, 1, 2, -1]).astype(np.uint8), "query/identity: number 3 is"),
        ("query/identity", np.array([0, 1, 2, 2**63], np.uint64), "number 3 is 922337203685477580"),
        ("query/camera", np.array([0, 1, 2, 200]).astype(np.int8), "query/camera: number 3 is -56"),
    ],
)  # fmt: skip
def test_labels_that_their_type_changed_are_named(tmp_path, name, value, reason):
    with pytest.raises(UserError, match=reason):
        read_features(foreign(tmp_path / "f.h5", datasets={name: value}))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("first_camera", 1.5, "the attribute first_camera is 1.5; expected an integer"),
        ("first_camera", "one", "the attribute first_camera is one"),
        ("protocol", ["all_gallery", "cross_camera"], "the attribute protocol holds 2 values"),
        ("version", "two", "format version two, this program reads 1"),
    ],
)
def test_odd_attributes_are_named(tmp_path, name, value, reason):
    with pytest.raises(UserError, match=reason):
        read_features(foreign(tmp_path / "f.h5", **{name: value}))


def test_attributes_may_be_text_as_c_and_matlab_write_it(tmp_path):
    path = foreign(tmp_path / "f.h5", protocol=np.bytes_(b"all_gallery"), first_camera=[1])
    read = read_features(path)
    assert (read.protocol, read.first_camera) == ("all_gallery", 1)


def small(path, protocol="all_gallery"):
    """A small file; returns its bytes."""
    write_features(path, {"query": group(seed=1), "gallery": group(seed=2)}, dataset="d", model="m",
                   protocol=protocol, first_camera=1)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"all_gallery", b"all_gaLlery"), (b"all_gallery", b"\0" * 11),  # as none: cross_camera
        ("größe 3.jpg".encode(), "größe 4.jpg".encode()),
        (b"first_camera\0", b"first_c\0\0\0\0\0\0"),
        (b"camera\0", b"view\0\0\0"),
    ],
)  # fmt: skip
def test_damage_that_hdf5_does_not_see_is_told(tmp_path, before, after):
    content = small(tmp_path / "f.h5")
    assert before in content
    (tmp_path / "f.h5").write_bytes(content.replace(before, after, 1))
    with pytest.raises(UserError, match=r"f\.h5: "):
        read_features(tmp_path / "f.h5")


def test_a_chunk_in_the_place_of_another_is_told_although_its_own_checksum_is_right(tmp_path):
    path = tmp_path / "f.h5"
    small(path)
    with h5py.File(path) as file:
        here, other = (file[f"{side}/features"].id.get_chunk_info(0).byte_offset
                       for side in ("query", "gallery"))
    content = path.read_bytes()
    places = here.to_bytes(8, "little"), other.to_bytes(8, "little")
    assert content.count(places[0]) == 1
    path.write_bytes(content.replace(*places))
    with pytest.raises(UserError, match="rows 0 to 6 of query/features are damaged"):
        read_features(path)


def test_a_file_that_was_changed_on_purpose_is_read_once_it_says_so(tmp_path):
    path = tmp_path / "f.h5"
    small(path)
    with h5py.File(path, "r+") as file:
        file["query/identity"][0] = 77
    with pytest.raises(UserError, match="set its attribute complete to True"):
        read_features(path)
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = True
    assert read_features(path).groups["query"].identities[0] == 77


def test_a_converted_copy_is_compared_with_what_was_written(tmp_path):
    path, packed = tmp_path / "f.h5", tmp_path / "packed.h5"
    small(path)
    with h5py.File(path) as file, h5py.File(packed, "w") as copy:
        for side in ("query", "gallery"):
            for name, values in file[side].items():
                more = {"compression": "gzip", "chunks": (2, 3)} if name == "features" else {}
                copy.create_dataset(f"{side}/{name}", data=values[()], dtype=values.dtype, **more)
        copy.attrs.update(file.attrs)
    written = read_features(path)
    assert_same(read_features(packed).groups["query"], written.groups["query"])
    with h5py.File(packed, "r+") as copy:
        copy["query/features"][3] = 0
    with pytest.raises(UserError, match="rows 0 to 6 of query/features are damaged"):
        read_features(packed)


def test_a_small_file_that_declares_a_trillion_rows_is_refused_at_once(tmp_path):
    for chunks in (None, (1000, 3)):
        path = tmp_path / "f.h5"
        with h5py.File(foreign(path), "r+") as file:
            del file["query/features"], file["query/identity"], file["query/camera"]
            file.create_dataset("query/features", (10**12, 3), "f4", chunks=chunks)
            for name in ("identity", "camera"):
                file.create_dataset(f"query/{name}", (10**12,), "i8", chunks=chunks and (1000,))
        with pytest.raises(UserError, match=r"query/identity: 0 of \d+ (bytes|chunks) are there"):
            read_features(path)


def test_what_lies_in_other_files_is_refused_not_read_as_zeros(tmp_path):
    path = foreign(tmp_path / "f.h5", leave_out=["query/features"])
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("gone.h5", "x", (4, 3))
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("query/features", layout)
        assert not file["query/features"][:].any()
    with pytest.raises(UserError, match="query/features: its values are in other files; copy them"):
        read_features(path)
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(path, "r+") as file:
        del file["query/features"]
        file["query/features"] = h5py.ExternalLink("pipe", "/x")
    with pytest.raises(UserError, match="query/features is a link to pipe; copy it into this file"):
        read_features(path)
