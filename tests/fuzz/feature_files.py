"""Saved features: our HDF5, files of other toolboxes, ranked lists of them."""

import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import scipy.io
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup, write_features
from svll.base.protocol_names import PROTOCOLS
from svll.evaluation.feature_files import imported_features
from svll.evaluation.feature_files.ranked_lists import Wanted, check_wanted, ranked_lists
from svll.evaluation.feature_files.scores import score
from svll.evaluation.feature_files.sources import Source, open_source
from svll.evaluation.ranking import Options
from tests.fuzz.inputs import damaged, odd_texts
from tests.fuzz.trying import Target
from tests.svll.reports.worlds import plain_ranking

Values = dict[str, Any]
"""Datasets and attributes by path; attributes as `@name`."""
SIDES = ("query", "gallery")
USUAL: Values = {"@format": "svll-features", "@version": 1, "@complete": True}


@cache
def parts() -> dict[str, FeatureGroup]:
    """A small query and gallery with junk, one whose ranking is neither perfect nor hopeless."""
    rng, centres = np.random.default_rng(5), np.eye(4, 6)
    made = {}
    for side, count in zip(SIDES, (7, 19), strict=True):
        identities = rng.integers(-1, 4, count)
        features = centres[identities] + 0.6 * rng.standard_normal((count, 6))
        paths = tuple(f"/data/{side}/é {row}.jpg" for row in range(count))
        made[side] = FeatureGroup(features.astype(np.float32), identities,
                                  rng.integers(0, 3, count), paths=paths)
    return made


@cache
def ours(protocol: str) -> bytes:
    """A file of ours, without the free bytes at its end, which hold nothing."""
    with tempfile.TemporaryDirectory() as folder:
        write_features(f"{folder}/f.h5", parts(), dataset="toy", model="m", protocol=protocol,
                       key="k", first_camera=1)
        content = Path(folder, "f.h5").read_bytes()
    return content[: int.from_bytes(content[40:48], "little")]


def answer(path: Path, kind: str | None = None) -> dict[str, Any]:
    """All numbers of a file, without its name."""
    with open_source(path, kind) as source:
        [scored] = score(source, options=Options(top_k=3), bootstrap=True)
        return {**scored.as_json(), "file": "", "first": source.first_camera,
                "nearest": scored.result.nearest.tolist(), "paths": source.query.paths}


@cache
def right(protocol: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.h5")
        path.write_bytes(ours(protocol))
        return answer(path)


# ---- our files ----


def plain() -> Values:
    """The same features as another program would write them."""
    found = dict(USUAL)
    for side, group in parts().items():
        found |= {f"{side}/features": group.features, f"{side}/identity": group.identities,
                  f"{side}/camera": group.cameras}
    return found


def write(path: Path, values: Values) -> None:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            if name.startswith("@"):
                file.attrs[name[1:]] = value
            elif isinstance(value, tuple):  # a function and its arguments
                value[0](file, name, *value[1:])
            else:
                file[name] = value


def declared(file: h5py.File, name: str, shape: tuple[int, ...], kind: str, chunks: bool) -> None:
    """A dataset of any size, of which nothing is written."""
    file.create_dataset(name, shape, kind, chunks=tuple(min(n, 64) or 1 for n in shape)
                        if chunks else None)


def linked(file: h5py.File, name: str, other: str) -> None:
    file[name] = h5py.ExternalLink(other, "/x") if other else h5py.SoftLink("/nowhere")


def elsewhere(file: h5py.File, name: str, shape: tuple[int, ...]) -> None:
    """A view of a file that is not there, which HDF5 reads as zeros."""
    layout = h5py.VirtualLayout(shape, "f4" if len(shape) == 2 else "i8")
    layout[:] = h5py.VirtualSource("gone.h5", "x", shape)
    file.create_virtual_dataset(name, layout)


def changed_arrays() -> SearchStrategy[Callable[[Any], Any]]:
    """What may be wrong with an array."""
    kinds = st.sampled_from(("i1", "u1", "i2", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i8",
                             "S5", "c8", "?"))
    numbers = st.sampled_from((0, 7.5, -1, -2, 127, 255, 256, 2**24, 2**63, 2**64 - 1, 1e300,
                               float("nan"), float("inf")))

    def put(number: float, kind: str) -> Callable[[Any], Any]:
        def change(values: Any) -> Any:
            with np.errstate(all="ignore"):
                found = values.astype(float if kind in ("S5", "?") else kind)
                flat = found.reshape(-1)
                if flat.size:
                    with suppress(OverflowError, ValueError):
                        flat[flat.size // 2] = number
                return found.astype(kind)
        return change

    shapes = (lambda x: x.T, lambda x: x[:-1], lambda x: x[:0], lambda x: x[None],
              lambda x: x.reshape(-1)[:1].reshape(()), lambda x: np.concatenate([x, x]),
              lambda x: x[::-1], lambda x: x * 0)
    return st.one_of(st.sampled_from(shapes), st.builds(put, numbers, kinds))


def odd_values() -> SearchStrategy[Any]:
    shapes = st.lists(st.sampled_from((0, 1, 6, 7, 19, 10**6, 10**12)), max_size=3).map(tuple)
    return st.one_of(
        st.just(None), changed_arrays(),
        st.builds(lambda *given: (declared, *given), shapes, st.sampled_from(("f4", "i8", "f8")),
                  st.booleans()),
        st.sampled_from(("", "gone.h5", "/dev/zero")).map(lambda other: (linked, other)),
        shapes.filter(bool).map(lambda shape: (elsewhere, shape)),
        odd_texts(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=20),
    )


def structured() -> SearchStrategy[Values]:
    names = st.sampled_from((*plain(), "query", "query/path", "query/view", "multi_query", "other",
                             "@protocol", "@dataset", "@first_camera", "query/features_sums"))
    return st.dictionaries(names, odd_values(), min_size=1, max_size=3)


def applied(changes: Values) -> Values:
    values = plain()
    for name, change in changes.items():
        before = values.pop(name, np.arange(7))
        if change is None:
            continue
        values[name] = change(np.asarray(before)) if callable(change) else change
        if name == "query":  # instead of the group
            values = {k: v for k, v in values.items() if not k.startswith("query/")}
    return values


def read_ours(value: tuple[str, Any], folder: Path) -> None:
    """A damaged file says what the whole one did or is refused; any other is ranked as by hand."""
    kind, given = value
    path = folder / "f.h5"
    if kind in PROTOCOLS:
        path.write_bytes(given)
        assert answer(path) == right(kind)
        return
    try:
        values = applied(given)
        write(path, values)
    except (TypeError, ValueError, OSError, LookupError, OverflowError, RuntimeError) as error:
        raise UserError("h5py does not write that") from error
    answer(path)
    with open_source(path) as source:
        as_written(source, values, ("/features", "/identity", "/camera"))
        by_hand(source)


def as_written(source: Source, values: Values, endings: tuple[str, str, str]) -> None:
    """What was read is what was written, to the number; endings: of the names in `values`."""
    for side, group in zip(SIDES, (source.query, source.gallery), strict=True):
        rows, *labels = (np.asarray(values[f"{side}{ending}"]) for ending in endings)
        assert np.array_equal(group.features[:], rows.astype(group.features.dtype), equal_nan=True)
        for read, given in zip((group.identities, group.cameras), labels, strict=True):
            assert read.tolist() == [int(one) for one in given.reshape(-1)]


def by_hand(source: Source) -> None:
    """Compare the score with one over a matrix of all distances, where none is near another."""
    if source.protocol != "cross_camera":
        return
    whole = replace(source, **{side: replace(group, features=group.features[:].astype(float))
                               for side, group in zip(SIDES, (source.query, source.gallery),
                                                      strict=True)})
    for group in (whole.query, whole.gallery):
        if not (np.linalg.norm(group.features, axis=1) > 1e-6).all():
            return
    plain_ones = plain_ranking(whole)
    found = [one.average_precision for one in plain_ones.values()]
    [scored] = score(source)
    if all(np.diff(one.distances).min(initial=1.0) > 1e-6 for one in plain_ones.values()):
        assert abs(np.nanmean(found) - scored.result.mAP) < 1e-6


def our_files() -> SearchStrategy[tuple[str, Any]]:
    harmed = st.sampled_from(("cross_camera", "all_gallery")).flatmap(
        lambda name: damaged(ours(name)).map(lambda content: (name, content)))
    return st.one_of(harmed, structured().map(lambda changes: ("structured", changes)))


# ---- files of other toolboxes ----


def foreign() -> dict[str, Any]:
    """The same features under the names of Person_reID_baseline_pytorch."""
    names = {"features": "f", "identities": "label", "cameras": "cam"}
    return {f"{side}_{short}": getattr(group, name) for side, group in parts().items()
            for name, short in names.items()}


def dumped(kind: str, values: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    if kind == "npz":
        np.savez(file, **values)
    elif kind == "pt":
        import torch

        torch.save({key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
                    for key, value in values.items()}, file)
    elif kind == "mat":
        scipy.io.savemat(file, values, do_compression=True)
    else:
        with h5py.File(file, "w", userblock_size=512) as out:
            for key, value in values.items():
                out[key] = np.asarray(value).T
                out[key].attrs["MATLAB_class"] = np.bytes_("double")
    return file.getvalue()


@cache
def whole(kind: str) -> bytes:
    flat = foreign()
    if kind in ("mat", "mat73"):  # labels as MATLAB has them
        flat = {key: value if key.endswith("_f") else value[None] for key, value in flat.items()}
    return dumped(kind, flat)


def odd_arrays() -> SearchStrategy[Any]:
    objects = (None, {"a": 1}, ["a", None], np.array([1, "a", None], object), "text", b"bytes",
               np.zeros((2, 2, 2)), np.array(["0001", "0002"]), np.float64(3), 2**70)
    return st.one_of(st.sampled_from(objects), changed_arrays(), st.floats(), st.integers(),
                     odd_texts())


def other_tools() -> SearchStrategy[tuple[str, Any]]:
    kinds = ("npz", "pt", "mat") * 2 + ("mat73",)  # this one takes a process
    names = st.sampled_from((*foreign(), "mquery_f", "x", "query_features", "query/f", "Query_F"))
    harmed = st.sampled_from(kinds).flatmap(
        lambda kind: damaged(whole(kind)).map(lambda content: (kind, content)))
    odd = st.tuples(st.sampled_from(kinds),
                    st.dictionaries(names, odd_arrays(), min_size=1, max_size=2))
    return st.one_of(harmed, odd)


def read_foreign_file(value: tuple[str, Any], folder: Path) -> None:
    """Formats with checksums say what the whole file did or are refused."""
    kind, given = value
    path = folder / f"f.{kind[:3]}"
    if isinstance(given, bytes):
        path.write_bytes(given)
        with mock.patch.object(imported_features, "TRIAL_S", 5.0):  # HDF5 may not come to an end
            found = answer(path)
        assert kind == "mat73" or found == foreign_answer(kind)
        return
    flat = foreign()
    try:
        for name, change in given.items():
            flat[name] = change(np.asarray(flat.get(name, 7))) if callable(change) else change
        path.write_bytes(dumped(kind, flat))
    except (TypeError, ValueError, OSError, LookupError, OverflowError, RuntimeError) as error:
        raise UserError("this cannot be written") from error
    answer(path)
    with open_source(path) as source:
        as_written(source, flat, ("_f", "_label", "_cam"))
        by_hand(source)


@cache
def foreign_answer(kind: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"f.{kind[:3]}"
        path.write_bytes(whole(kind))
        return answer(path)


# ---- ranked lists ----


def wanted() -> SearchStrategy[tuple[str, Any]]:
    cameras = st.integers(-2, 5) | st.sampled_from((2**63, -(2**70)))
    words = odd_texts() | st.integers(-1, 9).map(str) | st.sampled_from(
        ("é 3.jpg", "/data/query/é 3.jpg", "query/é 3.jpg", "3.jpg", "e\u0301 3.jpg", "٣", "+3"))
    return st.one_of(st.tuples(st.just("queries"), st.lists(words, min_size=1, max_size=3)),
                     st.tuples(st.just("cameras"), st.tuples(cameras, cameras)))


def read_lists(value: tuple[str, Any], folder: Path) -> None:
    """Lists are those of the whole matrix, with matches where identities are equal."""
    kind, given = value
    source = Source("f.h5", "toy", "cross_camera", *parts().values(), first_camera=1)
    chosen = Wanted(queries=given) if kind == "queries" else Wanted(cameras=given)
    check_wanted(source, chosen)
    [scored] = score(source, options=Options(top_k=10))
    found = ranked_lists(source, scored.result, chosen)
    assert found.shown
    if kind == "queries":
        for word, one in zip(given, found.shown, strict=True):
            path = source.query.paths[one.row]
            assert path == word or path.endswith(f"/{word}") or one.row == int(word)
    only = given[1] - 1 if kind == "cameras" else None
    by_row = plain_ranking(source, only_camera=only)
    for one in found.shown:
        if one.row in by_row:
            assert [hit.row for hit in one.hits] == by_row[one.row].rows[:10].tolist()
            assert [hit.is_match for hit in one.hits] == by_row[one.row].matches[:10].tolist()
        assert kind == "queries" or one.camera == given[0]
        assert all(kind == "queries" or hit.camera == given[1] for hit in one.hits)


TARGETS = [Target("feature_files", our_files(), read_ours, examples=100),
           Target("other_tools", other_tools(), read_foreign_file, examples=100),
           Target("ranked_lists", wanted(), read_lists, examples=60)]
