"""Files as other toolboxes write them, written here and read back."""

import io
import os
import pickle
import re
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from harness.base.errors import UserError
from svll.evaluation.feature_files import imported_features
from svll.evaluation.feature_files.imported_features import read_foreign


class Planted:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture
def planted(tmp_path):
    """Something that must not be unpickled while a test runs; and it would have worked."""
    thing = Planted(tmp_path / "ran")
    yield thing
    assert not os.path.exists(thing.folder)
    pickle.loads(pickle.dumps(thing))
    assert os.path.isdir(thing.folder)


def world(seed=0, query=5, gallery=12, width=7):
    """Arrays by group and field, with junk and distractors."""
    rng = np.random.default_rng(seed)
    groups = {}
    for name, count in (("query", query), ("gallery", gallery)):
        groups[name] = {
            "features": rng.standard_normal((count, width)).astype(np.float32),
            "identities": rng.integers(-1, 4, count),
            "cameras": rng.integers(1, 7, count),
        }
    return groups


def assert_read(groups, expected):
    assert list(groups) == list(expected)
    for name, group in groups.items():
        for field, values in expected[name].items():
            read = getattr(group, field)
            np.testing.assert_array_equal(read, values)
            assert read.dtype == (np.float32 if field == "features" else np.int64)
            assert read.flags.c_contiguous


def renamed(groups, prefixes, fields):
    """One flat dict: {"query": "q"} and {"features": "f"} make the key qf."""
    return {
        prefixes[name] + fields[field]: values
        for name, group in groups.items() for field, values in group.items()
    }


SPELLINGS = {
    "ours": (
        {"query": "query/", "gallery": "gallery/"},
        {"features": "features", "identities": "identity", "cameras": "camera"},
    ),
    "plural": (
        {"query": "query_", "gallery": "gallery_"},
        {"features": "features", "identities": "identities", "cameras": "cameras"},
    ),
    "baseline": (
        {"query": "query_", "gallery": "gallery_"},
        {"features": "f", "identities": "label", "cameras": "cam"},
    ),
    "torchreid": (
        {"query": "q", "gallery": "g"},
        {"features": "f", "identities": "_pids", "cameras": "_camids"},
    ),
    "mixed case": (
        {"query": "Query-", "gallery": "gallery."},
        {"features": "Feats", "identities": "ids", "cameras": "camIds"},
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_every_spelling_is_known(tmp_path, kind, spelling):
    groups = world()
    flat = renamed(groups, *SPELLINGS[spelling])
    path = tmp_path / f"features.{kind}"
    if kind == "npz":
        np.savez(path, distmat=np.zeros((2, 2)), **flat)
    else:
        torch.save({key: torch.tensor(values) for key, values in flat.items()}, path)
    assert_read(read_foreign(path), groups)


def test_a_mat_file_as_the_baseline_toolbox_writes_it_is_read(tmp_path):
    groups = world()
    flat = renamed(groups, *SPELLINGS["baseline"])
    as_there = {key: v if key.endswith("_f") else v.tolist() for key, v in flat.items()}
    scipy.io.savemat(tmp_path / "pytorch_result.mat", as_there)
    assert scipy.io.loadmat(tmp_path / "pytorch_result.mat")["query_label"].shape == (1, 5)
    assert_read(read_foreign(tmp_path / "pytorch_result.mat"), groups)


def test_its_multi_query_file_is_read_alone_and_together_with_the_others(tmp_path):
    groups = world()
    many = world(1)["gallery"]
    multi = {"mquery_f": many["features"], "mquery_label": many["identities"].tolist()}
    multi["mquery_cam"] = many["cameras"].tolist()
    scipy.io.savemat(tmp_path / "multi_query.mat", multi)
    assert_read(read_foreign(tmp_path / "multi_query.mat"), {"multi_query": many})
    flat = renamed(groups, *SPELLINGS["baseline"])
    scipy.io.savemat(tmp_path / "all.mat", flat | multi)
    assert_read(read_foreign(tmp_path / "all.mat"), groups | {"multi_query": many})


def test_structs_and_compressed_mat_files_are_read(tmp_path):
    groups = world()
    scipy.io.savemat(tmp_path / "f.mat", groups, do_compression=True)
    assert_read(read_foreign(tmp_path / "f.mat"), groups)


@pytest.mark.parametrize("nested", [False, True])
def test_a_mat_file_of_version_7_3_is_read(tmp_path, nested):
    """MATLAB stores the transpose, labels as doubles, and the class as an attribute."""
    groups = world()
    with h5py.File(tmp_path / "f.mat", "w", userblock_size=512) as file:
        for name, group in groups.items():
            for field, values in group.items():
                key = f"{name}/{field}" if nested else f"{name}_{field}"
                matrix = np.atleast_2d(values)
                matrix = matrix.T if field == "features" else matrix.T.astype(float)
                stored = file.create_dataset(key, data=matrix)
                kind = "single" if field == "features" else "double"
                stored.attrs["MATLAB_class"] = np.bytes_(kind)
        file["#refs#/a"] = np.zeros(3)
    with (tmp_path / "f.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    assert_read(read_foreign(tmp_path / "f.mat"), groups)


def test_a_file_of_7_3_that_matlab_did_not_write_is_refused_not_guessed(tmp_path):
    with h5py.File(tmp_path / "f.mat", "w") as file:
        for key, values in renamed(world(), *SPELLINGS["plural"]).items():
            file[key] = values
        file["query_cameras"].attrs["MATLAB_class"] = "char"
    with pytest.raises(UserError) as error:
        read_foreign(tmp_path / "f.mat")
    message = str(error.value)
    assert "gallery_cameras: was not written by MATLAB, so rows and columns cannot" in message
    assert "query_cameras: is of MATLAB's class char" in message


@pytest.mark.parametrize(("trial", "why"), [
    ("while True: pass", "HDF5 has not read it within 1 s"),
    ("import os; os.abort()", "HDF5 crashes on it"),
])
def test_a_file_of_7_3_on_which_hdf5_never_ends_or_crashes_is_refused(
    tmp_path, monkeypatch, trial, why
):
    with h5py.File(tmp_path / "f.mat", "w") as file:
        file["query_features"] = np.zeros(3)
    monkeypatch.setattr(imported_features, "TRIAL", trial)
    monkeypatch.setattr(imported_features, "TRIAL_S", 1.0)
    with pytest.raises(UserError, match=rf"f\.mat: cannot be read as mat: .*damaged \({why}\)"):
        read_foreign(tmp_path / "f.mat")


def test_an_empty_matrix_of_7_3_is_empty(tmp_path):
    groups = world()
    with h5py.File(tmp_path / "f.mat", "w") as file:
        for key, values in renamed(groups, *SPELLINGS["plural"]).items():
            file[key] = values.T
            file[key].attrs["MATLAB_class"] = "double"
        del file["gallery_features"]
        file["gallery_features"] = np.array([0, 7], np.uint64)
        file["gallery_features"].attrs.update(MATLAB_class="double", MATLAB_empty=1)
    with pytest.raises(UserError, match="gallery_features: there is no image in it"):
        read_foreign(tmp_path / "f.mat")


def test_nested_dicts_of_tensors_and_lists_are_read(tmp_path):
    groups = world()
    nested = {
        name: {
            "features": torch.tensor(group["features"]), "ids": group["identities"].tolist(),
            "cameras": torch.tensor(group["cameras"], dtype=torch.int16),
        }
        for name, group in groups.items()
    }  # fmt: skip
    torch.save({"model": "x", **nested}, tmp_path / "f.pt")
    assert_read(read_foreign(tmp_path / "f.pt"), groups)
    torch.save(nested, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_read(read_foreign(tmp_path / "old.pth"), groups)
    (tmp_path / "f.pt").rename(tmp_path / "f.bin")
    assert_read(read_foreign(tmp_path / "f.bin", "pt"), groups)


def test_half_features_stay_half_and_bfloat16_becomes_float32(tmp_path):
    flat = renamed(world(), *SPELLINGS["torchreid"])
    tensors = {key: torch.tensor(values) for key, values in flat.items()}
    tensors["qf"], tensors["gf"] = tensors["qf"].half(), tensors["gf"].bfloat16()
    torch.save(tensors, tmp_path / "f.pt")
    groups = read_foreign(tmp_path / "f.pt")
    assert groups["query"].features.dtype == np.float16
    np.testing.assert_array_equal(groups["query"].features, flat["qf"].astype(np.float16))
    assert groups["gallery"].features.dtype == np.float32
    np.testing.assert_array_equal(groups["gallery"].features, tensors["gf"].float().numpy())


def test_labels_of_any_number_type_and_shape_become_int64_rows(tmp_path):
    groups = world()
    flat = renamed(groups, *SPELLINGS["plural"])
    flat["query_identities"] = flat["query_identities"].astype(np.float64)[None]
    flat["query_cameras"] = flat["query_cameras"].astype(np.uint8)[:, None]
    flat["gallery_cameras"] = flat["gallery_cameras"].astype(">i4")
    texts = [f"{number:04}" if number >= 0 else "-1" for number in flat["gallery_identities"]]
    flat["gallery_identities"] = np.array(texts)
    flat["gallery_features"] = np.asfortranarray(flat["gallery_features"].astype(">f4"))
    flat["query_features"] = flat["query_features"].astype(np.float64)
    np.savez_compressed(tmp_path / "f.npz", **flat)
    assert_read(read_foreign(tmp_path / "f.npz"), groups)


# ---- what is refused ----


def fault(tmp_path, change, kind="npz"):
    """The message for a sound file in which `change` has changed something."""
    flat = renamed(world(), *SPELLINGS["plural"])
    change(flat)
    path = tmp_path / f"f.{kind}"
    if kind == "npz":
        np.savez(path, **flat)
    else:
        torch.save(flat, path)
    with pytest.raises(UserError) as error:
        read_foreign(path)
    return str(error.value)


def test_a_pickle_in_an_npz_is_refused_and_not_run(tmp_path, planted):
    def plant(flat):
        flat["query_identities"] = np.array([planted] * 5, dtype=object)

    message = fault(tmp_path, plant)
    assert "query_identities: holds Python objects (a pickle), which could run code" in message
    (tmp_path / "g.npz").write_bytes(pickle.dumps(planted))
    with pytest.raises(UserError, match="cannot be read as npz: another format"):
        read_foreign(tmp_path / "g.npz")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_pt_is_refused_and_not_run(tmp_path, planted, zipped):
    content = {"query_features": torch.zeros(2, 3), "other": planted}
    torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"f.pt: holds Python objects other than tensors"):
        read_foreign(tmp_path / "f.pt")
    (tmp_path / "g.pt").write_bytes(pickle.dumps(planted, protocol=2))
    with pytest.raises(UserError, match=r"g.pt: "):
        read_foreign(tmp_path / "g.pt")


def test_every_fault_is_named_with_the_keys_found_and_expected(tmp_path):
    def spoil(flat):
        del flat["gallery_cameras"]
        flat["query_pids"] = flat["query_identities"]
        flat["query_cameras"] = np.array([1, 2, 3, 4, 1.5])
        flat["gallery_identities"] = np.array(["x2"] * 12)
        flat["query_features"] = flat["query_features"].astype(float)
        flat["query_features"][3, 1] = np.nan

    lines = fault(tmp_path, spoil).splitlines()
    assert lines[0] == f"{tmp_path / 'f.npz'}: not usable as features of another toolbox:"
    assert [line.strip() for line in lines[1:-2]] == [
        "query identities appear more than once: query_identities, query_pids",
        "gallery cameras not found",
        "query_features: row 3 holds NaN, infinity or numbers beyond float32; extract the features "
        "of this image again",
        "query_cameras: number 4 is 1.5; integers are needed",
        "gallery_identities: holds text that is no integer, such as 'x2'; number the texts, alike "
        "in query and gallery",
    ]
    assert lines[-2].startswith("keys found: query_features, query_identities, query_cameras, gal")
    assert lines[-1].startswith("keys expected: query_features [n, d], query_identities [n]")


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("query_features", lambda x: x.T, r"query_features: \[7, 5\] is \[d, n\], one image per"),
        ("query_features", lambda x: x[:4], "query_identities: 5 of them, but 4 rows of query_fe"),
        ("query_features", lambda x: x[:, :6], "differ in width: query 6, gallery 7"),
        ("query_features", lambda x: x[None], r"has shape \[1, 5, 7\]; expected \[n, d\]"),
        ("query_features", lambda x: x.astype(int), "holds int64; floating-point numbers"),
        ("query_features", lambda x: x.astype(float) * 1e40, "row 0 holds NaN, infinity or number"),
        ("gallery_features", lambda x: x[:0], "gallery_features: there is no image in it"),
        ("query_cameras", lambda x: np.stack([x, x]), r"has shape \[2, 5\]; expected \[n\], \[1,"),
        ("query_cameras", lambda x: x * np.nan, "number 0 is nan"),
        ("query_cameras", lambda x: x * 1e300, r"number 0 is .*e\+300; integers"),
        ("query_cameras", lambda x: x > 2, "holds booleans"),
        ("query_cameras", lambda x: np.array(["7", "1", "2", "3", "07"]), "that are one number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path, key, change, message):
    def spoil(flat):
        flat[key] = change(flat[key])

    assert re.search(message, fault(tmp_path, spoil))


def test_files_that_are_not_of_their_kind_are_told(tmp_path):
    for name in ("a.npz", "a.mat", "a.pt"):
        path = tmp_path / name
        path.write_bytes(b"neither this nor that" * 30)
        with pytest.raises(UserError, match=rf"{name}: "):
            read_foreign(path)
        with pytest.raises(UserError, match="no such file"):
            read_foreign(tmp_path / "absent" / name)
    (tmp_path / "a.csv").touch()
    with pytest.raises(UserError, match=f"{tmp_path}: a folder; give a file in it"):
        read_foreign(tmp_path)
    with pytest.raises(UserError, match=r"unknown kind of file; .* --format npz\|mat\|pt"):
        read_foreign(tmp_path / "a.csv")
    torch.save(torch.zeros(3), tmp_path / "one.pt")
    with pytest.raises(UserError, match="holds one Tensor, not a dict"):
        read_foreign(tmp_path / "one.pt")


def test_weights_are_told_from_features(tmp_path):
    for name in ("model.safetensors", "model.pth"):
        torch.save({"bn.weight": torch.ones(3), "bn.bias": torch.ones(3)}, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}: these are weights, .* --weights \S*{name}"):
            read_foreign(tmp_path / name)


@pytest.mark.parametrize("kind", ["npz", "mat", "h5.mat", "pt"])
def test_files_cut_short_are_told(tmp_path, kind):
    flat = renamed(world(gallery=400), *SPELLINGS["plural"])
    path = tmp_path / f"f.{kind}"
    if kind == "npz":
        np.savez(path, **flat)
    elif kind == "mat":
        scipy.io.savemat(path, flat)
    elif kind == "pt":
        torch.save({key: torch.tensor(values) for key, values in flat.items()}, path)
    else:
        with h5py.File(path, "w") as file:
            file.update(flat)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=r"f\..*: "):
            read_foreign(path)


def test_a_damaged_array_in_an_npz_is_told(tmp_path):
    flat = renamed(world(), *SPELLINGS["plural"])
    np.savez(tmp_path / "f.npz", **flat)
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        at = archive.getinfo("query_cameras.npy").header_offset + 200
    content = bytearray((tmp_path / "f.npz").read_bytes())
    content[at] ^= 0xFF
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(UserError, match="query_cameras: is damaged"):
        read_foreign(tmp_path / "f.npz")


def entry(content: bytes, flat: dict) -> bytes:
    """An npz of the arrays `flat`, in which the camera array of the queries is `content`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for key, values in flat.items():
            raw = io.BytesIO()
            np.save(raw, values)
            archive.writestr(f"{key}.npy", content if key == "query_cameras" else raw.getvalue())
    return file.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (5,), }\n", bytes(48)),
        npy("{'descr': (('x', '\n", bytes(40)), npy("{" * 400, bytes(40)), b"", b"\x93NUMPY",
        b"text",
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-5,), }\n", bytes(40)),
    ],
)  # fmt: skip
def test_arrays_of_an_npz_that_declare_what_is_not_there_are_told(tmp_path, content):
    (tmp_path / "f.npz").write_bytes(entry(content, renamed(world(), *SPELLINGS["plural"])))
    with pytest.raises(UserError, match="query_cameras: is damaged"):
        read_foreign(tmp_path / "f.npz")


@pytest.mark.parametrize("start", [b"MZ", b"\x93NUMPY\x01\x00", b"\x80\x04"])
def test_a_zip_archive_that_begins_as_another_file_is_told_or_read(tmp_path, start):
    """numpy.load decides by the first bytes, and would take the third for a pickle."""
    flat = renamed(world(), *SPELLINGS["plural"])
    np.savez(tmp_path / "f.npz", **flat)
    content = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "f.npz").write_bytes(start + content)
    assert_read(read_foreign(tmp_path / "f.npz"), world())
    (tmp_path / "f.npz").write_bytes(content[:-30] + content[-22:])
    with pytest.raises(UserError, match=r"f\.npz: "):
        read_foreign(tmp_path / "f.npz")


def test_an_encrypted_npz_is_told(tmp_path):
    np.savez(tmp_path / "f.npz", **renamed(world(), *SPELLINGS["plural"]))
    content = bytearray((tmp_path / "f.npz").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            content[at + place] |= 1
    (tmp_path / "f.npz").write_bytes(content)
    with pytest.raises(UserError, match="query_cameras: is damaged"):
        read_foreign(tmp_path / "f.npz")


def test_a_bit_that_flipped_in_a_tensor_is_told(tmp_path):
    flat = renamed(world(), *SPELLINGS["plural"])
    torch.save({key: torch.tensor(values) for key, values in flat.items()}, tmp_path / "f.pt")
    content = (tmp_path / "f.pt").read_bytes()
    place = content.index(flat["gallery_features"].tobytes()) + 3
    damaged = content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]
    (tmp_path / "f.pt").write_bytes(damaged)
    with pytest.raises(UserError, match=r"f\.pt: cannot be read as pt: .* not match its checksum"):
        read_foreign(tmp_path / "f.pt")


def test_a_pt_that_holds_itself_is_told(tmp_path):
    content: dict = {}
    content["a"] = content
    torch.save(content, tmp_path / "f.pt")
    with pytest.raises(UserError, match=r"f\.pt: cannot be read as pt: .* recursion"):
        read_foreign(tmp_path / "f.pt")


@pytest.mark.parametrize(
    ("key", "values", "reason"),
    [
        ("query_cameras", np.array([1, 2, 3, 4, 255], np.uint8), "query_cameras: number 4 is 255"),
        ("query_identities", np.arange(2**24, 2**24 + 5).astype(np.float32),
         "query_identities: number 0 is 16777216.0; float32 holds integers exactly only below"),
        ("query_identities", np.array([1, 2, 3, 4, 200]).astype(np.int8), "number 4 is -56"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["npz", "mat"])
def test_labels_that_their_type_changed_are_reported(tmp_path, kind, key, values, reason):
    flat = renamed(world(), *SPELLINGS["plural"]) | {key: values}
    save = {"npz": lambda path: np.savez(path, **flat),
            "mat": lambda path: scipy.io.savemat(path, flat)}
    save[kind](tmp_path / f"f.{kind}")
    with pytest.raises(UserError, match=reason):
        read_foreign(tmp_path / f"f.{kind}")


def test_labels_in_bfloat16_are_told(tmp_path):
    def spoil(flat):
        flat.update((key, torch.as_tensor(values)) for key, values in flat.items())
        flat["query_identities"] = torch.tensor([1, 2, 3, 4, 257]).bfloat16()

    message = fault(tmp_path, spoil, "pt")
    assert "query_identities: holds bfloat16, which has integers only up to 256; save" in message


def test_a_virtual_dataset_of_7_3_is_refused_not_read_as_zeros(tmp_path):
    layout = h5py.VirtualLayout((7, 5), "f4")
    layout[:] = h5py.VirtualSource("gone.h5", "x", (7, 5))
    with h5py.File(tmp_path / "f.mat", "w") as file:
        for key, values in renamed(world(), *SPELLINGS["plural"]).items():
            if key == "query_features":
                file.create_virtual_dataset(key, layout)
            else:
                file[key] = values.T
            file[key].attrs["MATLAB_class"] = "double"
    with pytest.raises(UserError, match="query_features: its values are in other files"):
        read_foreign(tmp_path / "f.mat")
