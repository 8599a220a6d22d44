"""Rows of features on disk: read as written in every way, and never otherwise in silence."""

import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from harness.base.errors import UserError
from harness.features import rows as feature_rows
from harness.features.content import SUMS
from harness.features.hdf5 import new_file, open_file, stored_bytes
from harness.features.rows import StoredRows, checksum, put_features

OURS = {"chunks": (600, 400), "fletcher32": True}
"""How 3,000 rows of 1,600 bytes are laid out: in even shares of at most 1 MiB."""
LAYOUTS = {
    "version 1": OURS, "contiguous": {}, "columns": {"chunks": (100, 7)},
    "repacked": OURS | {"chunks": (100, 400)}, "compressed": OURS | {"compression": "gzip"},
    "float64": {"dtype": "<f8"}, "big-endian": OURS | {"dtype": ">f4"},
}
"""Those of others: before there were sums, without any checksum, laid out anew."""
KINDS = ("ours", *LAYOUTS)


def features(rows=3000, width=400, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((rows, width)).astype(dtype)


def stored(path, values, kind="ours"):
    with new_file(path, stored_bytes(len(values), values.shape[1] * values.dtype.itemsize)) as file:
        put_features(file, values)
    if kind == "ours":
        return path
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", data=values, **LAYOUTS[kind])
        if kind != "repacked":
            del file[SUMS]
    return path


@contextmanager
def opened(path):
    with open_file(path) as file:
        yield StoredRows(path, file["features"], file.get(SUMS))


def read(path):
    with opened(path) as rows:
        return rows[:]


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
    with opened(stored(tmp_path / "f.h5", values, kind)) as rows:
        assert rows.dtype == LAYOUTS.get(kind, {}).get("dtype", dtype)
        assert (rows.shape, len(rows), rows.ndim) == (values.shape, 3000, 2)
        for first, last in [(0, 3000), (0, 0), (5, 6), (260, 1700), (2999, 3000), (2900, 9999)]:
            np.testing.assert_array_equal(rows[first:last], values[first:last])
        for chosen in (rng.permutation(3000), np.array([7, 7, 2999, 0]), rng.random(3000) < 0.3,
                       np.array([], int), [], [4, 2], 17, slice(None, None, 7), slice(9, 2, -2)):
            np.testing.assert_array_equal(rows[chosen], values[chosen])
        np.testing.assert_array_equal(rows[-3:], values[-3:])
        np.testing.assert_array_equal(np.asarray(rows), values)
        assert np.asarray(rows, np.float64).dtype == np.float64


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 3), (3, 200_001)])
def test_odd_shapes_come_back(tmp_path, shape):
    for dtype in (np.float32, np.float16):
        values = features(*shape, dtype)
        path = stored(tmp_path / "f.h5", values)
        np.testing.assert_array_equal(read(path), values)


def test_what_is_written_may_itself_lie_on_disk(tmp_path):
    values = features()
    with opened(stored(tmp_path / "a.h5", values)) as rows:
        stored(tmp_path / "b.h5", rows)
    np.testing.assert_array_equal(read(tmp_path / "b.h5"), values)


@pytest.mark.parametrize("kind", ["ours", "version 1", "repacked"])
def test_one_bit_that_flipped_is_told_with_its_rows_however_it_is_read(tmp_path, kind):
    values = features()
    path = stored(tmp_path / "f.h5", values, kind)
    content = path.read_bytes()
    size = LAYOUTS.get(kind, OURS)["chunks"][0]
    for row in (0, size - 1, size, 1234, 2999):
        path.write_bytes(content)
        first = row // size * size
        with h5py.File(path) as file:
            chunk = file["features"].id.get_chunk_info_by_coord((first, 0)).byte_offset
        flip(path, chunk + 1600 * (row - first) + 801)
        message = (
            rf"f.h5: rows {first} to {first + size - 1} of features are damaged: .*; "
            "write the file again"
        )
        with pytest.raises(UserError, match=message):
            read(path)
        with opened(path) as rows:
            for wanted in (slice(row, row + 1), slice(0, 3000), [row]):
                # HDF5's own checksums report only the requested rows of the chunk
                pattern = message if kind == "ours" else r"f.h5: rows \d+ to \d+ of features are"
                with pytest.raises(UserError, match=pattern):
                    rows[wanted]
            other = 0 if row >= size else size
            np.testing.assert_array_equal(rows[other : other + 9], values[other : other + 9])


def test_a_file_that_is_cut_short_while_it_is_open_is_told(tmp_path):
    path = stored(tmp_path / "f.h5", features())
    place = path.read_bytes().index(features()[2000].tobytes())
    with opened(path) as rows:
        os.truncate(path, place)
        with pytest.raises(UserError, match=r"f.h5: rows 1800 to 2399 of features are dam"):
            rows[:]


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


@pytest.mark.parametrize("how", ["in place", "float64", "fewer sums", "wrong sums"])
def test_features_that_others_changed_are_read_whatever_the_old_sums_say(tmp_path, how):
    values = features()
    path = stored(tmp_path / "f.h5", values)
    with h5py.File(path, "r+") as file:
        if how == "in place":
            values[7] += 1
            file["features"][7] = values[7]
        elif how == "float64":
            del file["features"]
            file["features"] = values.astype(np.float64)
        elif how == "fewer sums":
            sums = file["features_sums"][1:]
            del file["features_sums"]
            file["features_sums"] = sums
        else:
            file["features_sums"][2] += np.uint32(1)
    np.testing.assert_array_equal(read(path), values)


def test_rows_of_a_closed_file_are_not_read_from_whatever_file_has_its_place(tmp_path):
    with opened(stored(tmp_path / "f.h5", features(5, 3))) as rows:
        pass
    with pytest.raises(AssertionError, match="read after it was closed"):
        rows[:]


def test_several_threads_read_at_once(tmp_path):
    values = features()
    with opened(stored(tmp_path / "f.h5", values)) as rows, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda a: rows[a : a + 500], range(0, 3000, 100)))
    for start, part in zip(range(0, 3000, 100), found, strict=True):
        np.testing.assert_array_equal(part, values[start : start + 500])


@pytest.fixture
def read_bytes(monkeypatch):
    """How many bytes each direct read was to give."""
    read, lock = [], threading.Lock()
    plain = feature_rows.os.preadv

    def note(handle, buffers, place):
        with lock:
            read.append(sum(len(buffer) for buffer in buffers))
        return plain(handle, buffers, place)

    monkeypatch.setattr(feature_rows.os, "preadv", note)
    return read


def test_no_more_is_read_than_the_blocks_that_hold_the_rows(tmp_path, read_bytes):
    values = features()
    with opened(stored(tmp_path / "f.h5", values)) as rows:
        assert read_bytes == []
        rows[10:20]
        assert read_bytes == [600 * 1600]
        read_bytes.clear()
        rows[:]
        assert sum(read_bytes) == values.nbytes


@pytest.mark.parametrize("size", [1, 64, 600, 999, 2048])
def test_rows_that_are_read_in_turn_are_read_once_wherever_chunks_end(tmp_path, read_bytes, size):
    values = features()
    with opened(stored(tmp_path / "f.h5", values)) as rows:
        for first in range(0, 3000, size):
            np.testing.assert_array_equal(rows[first : first + size], values[first : first + size])
    assert sum(read_bytes) == values.nbytes


def test_a_file_system_may_give_less_than_was_asked_for(tmp_path, monkeypatch):
    values = features()
    path = stored(tmp_path / "f.h5", values)
    plain = feature_rows.os.preadv
    monkeypatch.setattr(
        feature_rows.os, "preadv", lambda handle, buffers, place: plain(
            handle, [buffers[0][:100_000]], place
        ),
    )
    monkeypatch.setattr(feature_rows.StoredRows, "_read_by_hdf5", None)
    np.testing.assert_array_equal(read(path), values)
