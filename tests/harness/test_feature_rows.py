"""Rows of features on disk: read as written in every way, and never otherwise in silence."""

import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from harness import feature_rows
from harness.errors import UserError
from harness.feature_rows import checksum
from harness.features import FeatureGroup, open_features, read_features, write_features

KINDS = ("ours", "version 1", "foreign", "repacked", "compressed")
"""As we write them; before there were sums; without any checksum; ours, as someone else laid it out
or compressed it."""


def features(rows=3000, width=400, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((rows, width)).astype(dtype)


def cache(path, values, kind="ours"):
    labels = np.zeros(len(values), int)
    write_features(path, {"query": FeatureGroup(values, labels, labels)}, dataset="d", model="m")
    if kind == "ours":
        return path
    with h5py.File(path, "r+") as file:
        query = file["query"]
        chunks = query["features"].chunks
        del query["features"]
        layout = {
            "version 1": {"chunks": chunks, "fletcher32": True}, "foreign": {},
            "repacked": {"chunks": (100, values.shape[1])},
            "compressed": {"chunks": chunks, "compression": "gzip"},
        }[kind]
        query.create_dataset("features", data=values, **layout)
        if kind in ("version 1", "foreign"):
            del query["features_sums"]
    return path


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_slices_masks_and_row_numbers_are_those_of_the_array(tmp_path, kind, dtype):
    values = features(dtype=dtype)
    rng = np.random.default_rng(1)
    with open_features(cache(tmp_path / "f.h5", values, kind)) as file:
        rows = file.groups["query"].features
        assert (rows.shape, rows.dtype, len(rows), rows.ndim) == (values.shape, dtype, 3000, 2)
        for first, last in [(0, 3000), (0, 0), (5, 6), (260, 1700), (2999, 3000), (2900, 9999)]:
            np.testing.assert_array_equal(rows[first:last], values[first:last])
        for chosen in (rng.permutation(3000), np.array([7, 7, 2999, 0]), rng.random(3000) < 0.3,
                       np.array([], int), [4, 2], 17):
            np.testing.assert_array_equal(rows[chosen], values[chosen])
        np.testing.assert_array_equal(rows[-3:], values[-3:])
        np.testing.assert_array_equal(np.asarray(rows), values)
        assert np.asarray(rows, np.float64).dtype == np.float64


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 3), (3, 200_001)])
def test_odd_shapes_come_back(tmp_path, shape):
    for dtype in (np.float32, np.float16):
        values = features(*shape, dtype)
        path = cache(tmp_path / "f.h5", values)
        np.testing.assert_array_equal(read_features(path).groups["query"].features, values)


def test_what_is_written_may_itself_lie_on_disk(tmp_path):
    values = features()
    with open_features(cache(tmp_path / "a.h5", values)) as file:
        write_features(tmp_path / "b.h5", file.groups, dataset="d", model="m")
    np.testing.assert_array_equal(
        read_features(tmp_path / "b.h5").groups["query"].features, values
    )


@pytest.mark.parametrize("kind", ["ours", "version 1", "repacked"])
def test_one_bit_that_flipped_is_told_with_its_rows_however_it_is_read(tmp_path, kind):
    values = features()
    path = cache(tmp_path / "f.h5", values, kind)
    content = path.read_bytes()
    size = 600  # of a block: 3,000 rows of 1,600 bytes in even shares of at most 1 MiB
    if kind != "repacked":
        with h5py.File(path) as file:
            assert file["query/features"].chunks[0] == size
    for row in (0, size - 1, size, 1234, 2999):
        path.write_bytes(content)
        flip(path, content.index(values[row].tobytes()) + 801)
        first = row // size * size
        told = rf"f.h5: rows {first} to {first + size - 1} of query/features are damaged"
        with pytest.raises(UserError, match=told):
            read_features(path)
        with open_features(path) as file:
            rows = file.groups["query"].features
            for wanted in (slice(row, row + 1), slice(0, 3000), [row]):
                # what HDF5 verifies is told with those rows of the chunk that were asked for
                hdf5 = kind == "version 1"
                pattern = r"f.h5: rows \d+ to \d+ of query/features" if hdf5 else told
                with pytest.raises(UserError, match=pattern):
                    rows[wanted]
            other = 0 if row >= size else size
            np.testing.assert_array_equal(rows[other : other + 9], values[other : other + 9])


def test_every_bit_counts_in_the_checksum_and_so_does_the_order_of_lines():
    block = features(13, 1031)  # 13 lines of 4 KiB and a rest
    plain = checksum(block)
    flat = block.view(np.uint8).reshape(-1)
    for place in [*range(0, flat.size, 97), *range(flat.size - 20, flat.size)]:
        flat[place] ^= 1 << (place % 8)
        assert checksum(block) != plain
        flat[place] ^= 1 << (place % 8)
    assert checksum(block) == plain
    lines = flat[: 13 * 4096].reshape(13, 4096)
    lines[[2, 9]] = lines[[9, 2]]
    assert checksum(block) != plain


def test_the_checksum_is_the_documented_one():
    block = features(5, 1031)
    raw = block.tobytes()
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw) // 4096 * 4096, 8)]
    lines = [words[i : i + 512] for i in range(0, len(words), 512)]
    columns = [sum(column) % 2**64 for column in zip(*lines, strict=True)]
    across = [sum(line) % 2**64 for line in lines]
    text = b"".join(number.to_bytes(8, "little") for number in columns + across)
    assert checksum(block) == zlib.crc32(text + raw[len(words) * 8 :])


def test_sums_that_do_not_fit_are_refused(tmp_path):
    path = cache(tmp_path / "f.h5", features(10, 4))
    with h5py.File(path, "r+") as file:
        file["query/features_sums"].attrs["rows"] = 3
    with pytest.raises(UserError, match=r"query/features_sums does not fit the features"):
        read_features(path)


def test_an_error_of_the_body_passes_as_it_is(tmp_path):
    with (
        pytest.raises(OSError, match="mine"),
        open_features(cache(tmp_path / "f.h5", features(5, 3))),
    ):
        raise OSError("mine")


def test_rows_of_a_closed_cache_are_not_read_from_whatever_file_has_its_place(tmp_path):
    with open_features(cache(tmp_path / "f.h5", features(5, 3))) as file:
        rows = file.groups["query"].features
    with pytest.raises(AssertionError, match="read after it was closed"):
        rows[:]


def test_several_threads_read_at_once(tmp_path):
    values = features()
    with open_features(cache(tmp_path / "f.h5", values)) as file, ThreadPoolExecutor(4) as pool:
        rows = file.groups["query"].features
        found = list(pool.map(lambda a: rows[a : a + 500], range(0, 3000, 100)))
    for start, part in zip(range(0, 3000, 100), found, strict=True):
        np.testing.assert_array_equal(part, values[start : start + 500])


def test_no_more_is_read_than_the_blocks_that_hold_the_rows(tmp_path, monkeypatch):
    read, lock = [], threading.Lock()
    plain = feature_rows.os.preadv

    def note(handle, buffers, place):
        with lock:
            read.append(sum(len(buffer) for buffer in buffers))
        return plain(handle, buffers, place)

    values = features()
    path = cache(tmp_path / "f.h5", values)
    monkeypatch.setattr(feature_rows.os, "preadv", note)
    with open_features(path) as file:
        rows = file.groups["query"].features
        assert read == []
        rows[10:20]
        assert 0 < sum(read) <= 2**20
        read.clear()
        rows[:]
        assert sum(read) == values.nbytes
