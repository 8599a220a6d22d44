"""What users have as datasets: lists, folders in the layouts of benchmarks, image files."""

import csv
import io
import logging
import math
import os
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

from harness.base.errors import UserError
from harness.images.decoding import check_images, decode_pipeline, file_names
from harness.images.pixels import NO_IMAGE, Unreadable, upright
from svll.base.records import Dataset
from svll.data import checking, own_split
from svll.data.benchmarks import load_benchmark
from svll.data.readers import csv_list
from tests import picture_files
from tests.fuzz.inputs import damaged, odd_texts
from tests.fuzz.trying import Target
from tests.svll.data import trees

Row = dict[str, str]
COLUMNS = ("path", "identity", "camera", "view", "split")

# --- lists ---

ROWS: list[Row] = [
    dict(zip(COLUMNS, row, strict=True)) for row in (
        ("a/1.jpg", "3", "0", "2", "train"), ("a/2.png", "3", "1", "0", "train"),
        ("b 3.JPG", "12", "1", "1", "train"), ("c/4.webp", "12", "10", "1", "train"),
        ("d/5.jpg", "400", "0", "0", "query"), ("d/6.jpg", "400", "10", "3", "gallery"),
        ("é/7.tif", "-1", "1", "0", "gallery"), ("d/8.jpeg", "40", "1", "1", "gallery"),
        ("e/9.bmp", "12345678", "1", "2", "validation"),
    )
]

Notation = Callable[[str], str]
NUMBERS: tuple[Notation, ...] = (
    str, lambda n: f"{n}.0", lambda n: f"{n}.", lambda n: f"{n}.00", lambda n: f"{n},0",
    lambda n: f" {n} ", lambda n: f"{n}e0", lambda n: f"{n}E+00", lambda n: f"\u200b{n}",
    lambda n: n.replace("-", "\u2212"), lambda n: f"+{n}".replace("+-", "-"),
    lambda n: n.translate(str.maketrans("0123456789", "０１２３４５６７８９")),
)
"""Ways in which tools write one whole number."""
PATHS: tuple[Notation, ...] = (
    str, lambda p: f"./{p}", lambda p: p.replace("/", "\\"), lambda p: f"x/../{p}",
    lambda p: p.replace("/", "//"), lambda p: f" {p}",
)
LABELS = st.one_of(odd_texts(), st.sampled_from((
    "x7", "NA", "nan", "NaN", "<NA>", "NULL", "None", "1,000", "7,0", "−1", "-1e0", "(1)", "- 1",
    "1E+12", "70000", "300", "3000000000", str(2**31), str(2**63), "9" * 18, "9" * 19, "1_0",
    "e\u0301", "1.5", "1.50", "3\u200b", "03", "12.0", "４００", "Train", "test",
)))


class Written(NamedTuple):
    """How a list is written."""

    order: list[int]
    columns: list[str]
    number: list[Notation]
    path: Notation
    quoting: int
    end: str
    start: str
    blank: bool


def _written(rows: list[Row], how: Written) -> bytes:
    text = io.StringIO(newline="")
    table = csv.writer(text, quoting=how.quoting, lineterminator=how.end)
    table.writerow(how.columns)
    for place, row in enumerate([rows[n] for n in how.order]):
        number = how.number[place % len(how.number)]
        cells = {name: number(cell) if name in csv_list.LABELS else cell
                 for name, cell in row.items()} | {"path": how.path(row["path"])}
        table.writerow([cells[name] for name in how.columns])
        if how.blank:
            text.write(how.end)
    return (how.start + text.getvalue()).encode("utf-8", "surrogatepass")


PLAIN = Written(list(range(len(ROWS))), list(COLUMNS), [str], str, csv.QUOTE_MINIMAL, "\n", "",
                False)


def _ways() -> SearchStrategy[Written]:
    return st.builds(
        Written, st.permutations(PLAIN.order), st.permutations(COLUMNS),
        st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4), st.sampled_from(PATHS),
        st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), st.sampled_from(("\n", "\r\n", "\r")),
        st.sampled_from(("", "\ufeff")), st.booleans(),
    )


def _rows_with_odd_cells() -> SearchStrategy[list[Row]]:
    cells = st.tuples(st.integers(0, len(ROWS) - 1), st.sampled_from(COLUMNS), LABELS)
    return st.lists(cells, min_size=1, max_size=3).map(lambda odd: [
        row | {name: text for place, name, text in odd if place == n} for n, row in enumerate(ROWS)
    ])


def lists() -> SearchStrategy[tuple[str, Any]]:
    return st.one_of(
        st.tuples(st.just("damaged"), damaged(_written(ROWS, PLAIN))),
        st.tuples(st.just("the same"), _ways()),
        st.tuples(st.just("odd"), _rows_with_odd_cells()),
    )


def read_list(value: tuple[str, Any], folder: Path) -> None:
    """Read a list; the order of its lines and ways of writing change nothing, and images have one
    identity where their labels are one text or number."""
    kind, content = value
    if kind == "damaged":
        _columns(_load_list(folder, content))
        return
    if kind == "the same":
        found = _columns(_load_list(folder, _written(ROWS, content)))
        assert found == _columns(_load_list(folder, _written(ROWS, PLAIN))), found
        return
    found = _columns(_load_list(folder, _written(content, PLAIN)))
    turned = PLAIN._replace(order=PLAIN.order[::-1], quoting=csv.QUOTE_ALL)
    assert found == _columns(_load_list(folder, _written(content, turned)))
    kept = [row for row in content if _meaning(row["identity"]) != -1]
    images = {path: labels for part in found.values() for path, *labels in part}
    assert len(images) == len(kept), "images without a word"
    for place, name in enumerate(csv_list.LABELS):
        numbers = defaultdict(set)
        for row in kept:
            path = next(p for p in images if p.endswith(os.path.basename(row["path"]).strip()))
            numbers[_meaning(row[name])].add(images[path][place])
        assert all(len(one) == 1 for one in numbers.values()), (name, numbers)
        assert len(set().union(*numbers.values())) == len(numbers), (name, numbers)


def _meaning(text: str) -> object:
    """The number that a person reads, or what is seen of another text."""
    seen = unicodedata.normalize("NFKC", text).replace("\u200b", "").strip()
    with suppress(ValueError):
        value = float(seen.replace("\u2212", "-").replace(",", "."))
        if math.isfinite(value) and "_" not in seen and len(seen) < 16:
            return value
    return seen


def _load_list(folder: Path, content: bytes) -> Dataset:
    (folder / "list.csv").write_bytes(content)
    return csv_list.load(folder / "list.csv")


def _columns(dataset: Dataset) -> dict[str, list[tuple[Any, ...]]]:
    """The images of each part, after what every command asks of a dataset."""
    assert checking.part_counts(dataset, None)
    checking.notes(dataset)
    assert len(dataset.fingerprint) == 16
    return {
        name: list(zip(part.paths, part.identities.tolist(), part.cameras.tolist(),
                       part.views.tolist(), strict=True))
        for name, part in dataset.parts().items()
    }


# --- folders ---

NAMED = {"market1501": "Market-1501", "dukemtmc": "DukeMTMC", "veri776": "VeRi",
         "folder": "Market-1501"}
LISTED = {"msmt17": "MSMT17_V1", "vehicleid": "VehicleID"}
ODD_NAMES = (
    "0002_c1s1_000451_03.jpg", "0002_c2s1_1.JPG", "0002_c2s1_1.jpg", "-1_c1s1_1.jpg",
    "0000_c1s1_1.jpg", "0000_c0_1.png", "Copy of 0002_c1s1_1.jpg", "0002_c1s1_000451_03 (1).jpg",
    "0002_c1s1_1.gif", "0002_c1s1_1.heic", "0002_c1s1_1.jpeg2000", "0002_c1s1_1.jpg.part",
    ".0002_c1s1_1.jpg", "._0002_c1s1_1.jpg", "0002_c1s1_1.jpg~", "0002_C1S1_1.jpg", "-2_c1_1.jpg",
    "\u22121_c1_1.jpg", f"{10**17}_c1_1.jpg", f"{10**19}_c1_1.jpg", "0002_c70000_1.jpg",
    f"0002_c{10**9}_1.jpg", "0002_c1\n.jpg", "0002_c1 \\.jpg", "0002_c1_\udcb2.jpg", "notes.txt",
    "a", " 0002_c1_1.jpg", "0002_c1_1.jpg ", '0002_c1_".jpg', "0002_c1_,.jpg", "0002_c1_\r.jpg",
    "e\u0301_c1_1.jpg", "0002c1.jpg", "@eaDir", "0001", "１_c1_1.jpg", "$x_c1.jpg", "~.jpg",
)
KINDS = ("file", "file", "file", "folder", "full folder", "loop", "broken link", "linked folder")


def folders() -> SearchStrategy[tuple[str, list[tuple[str, str, int]], bytes | None]]:
    names = st.one_of(st.sampled_from(ODD_NAMES), odd_texts().map(lambda t: f"0002_c1_{t}.jpg"),
                      odd_texts(), odd_texts().map(lambda text: f"{text}_c2_1.jpg"))
    odd = st.tuples(names, st.sampled_from(KINDS), st.integers(0, 7))
    reader = st.sampled_from([*NAMED, *LISTED, "own folders", "own names"])
    line = st.one_of(st.none(), damaged(b"0000/0000_000_01_03_8_0.jpg 0\n0001/0001_1_02_3.jpg 1\n"))
    return st.tuples(reader, st.lists(odd, max_size=4), line)


def read_folder(value: tuple[str, list[tuple[str, str, int]], bytes | None], folder: Path) -> None:
    """Read a folder; every image in it is read with the labels in its name, or the log has it."""
    name, odd, lines = value
    root = folder / "data"
    _build(name, root)
    places = [root, *sorted(path for path in root.rglob("*") if path.is_dir())]
    for text, kind, place in odd:
        with suppress(OSError, ValueError):  # no such name, or one that is there
            _put(places[place % len(places)] / text, kind, root)
    if lines is not None and name in LISTED:
        max(root.rglob("*_list*.txt"), default=root / "list_train.txt").write_bytes(lines)
    with _logged() as said:
        if name.startswith("own"):
            read = _split(root, folder / "out.csv")
        else:
            read = {path: labels for part in _columns(load_benchmark(name, root)).values()
                    for path, *labels in part}
    _check_told(root / LISTED.get(name, ""), set(read), "\n".join(said))
    if name in NAMED:
        first = min(1, *(_in_name(path)[1] for path in read))
        wrong = {path: labels for path, labels in read.items()
                 if (labels[0], labels[1] + first) != _in_name(path)}
        assert not wrong, wrong


def _in_name(path: str) -> tuple[int, int]:
    match = re.match(r"(\d+)_c(\d+)", os.path.basename(path))
    assert match, path
    return int(match[1]), int(match[2])


def _build(name: str, root: Path) -> None:
    """Make an empty file for each image of a tiny dataset."""
    if name in LISTED:
        top = root / LISTED[name]
        _listed(name, top)
        return
    if name == "own names":
        files = [f"{i:04}_c{c}_{n}.jpg" for i in range(1, 7) for c in (1, 2) for n in (0, 1)]
    elif name == "own folders":
        files = [f"{who}/{n}.jpg" for who in "12345x" for n in range(3)]
    else:
        below = trees.VERI_FOLDERS if name == "veri776" else trees.MARKET_FOLDERS
        files = [f"{folder}/000{i}_c{c}_{part}.jpg" for part, folder in below.items()
                 for i in (1, 2) for c in (1, 2)]
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def _listed(name: str, top: Path) -> None:
    if name == "vehicleid":
        starts = {"train_test_split/train_list.txt": 1, "train_test_split/test_list_800.txt": 10}
        lists = {file: [(f"{n:07}", n // 2) for n in range(start, start + 4)]
                 for file, start in starts.items()}
        below = dict.fromkeys(lists, "image")
    else:
        parts = {"train": "train", "val": "train", "query": "test", "gallery": "test"}
        lists = {
            f"list_{part}.txt": [(f"000{i}/000{i}_{n}_0{n + 1}_{part}_1.jpg", i)
                                 for i in (0, 1) for n in (0, 1)]
            for part in parts
        }
        below = {f"list_{part}.txt": folder for part, folder in parts.items()}
    for file, images in lists.items():
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_text("".join(f"{image} {identity}\n" for image, identity in images))
        for image, _ in images:
            path = top / below[file] / (image if image.endswith(".jpg") else f"{image}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _put(path: Path, kind: str, root: Path) -> None:
    if kind == "file":
        path.touch()
    elif kind in ("folder", "full folder"):
        path.mkdir()
        if kind == "full folder":
            (path / "0002_c1_inside.jpg").touch()
    else:
        path.symlink_to({"loop": path, "broken link": "nowhere", "linked folder": root}[kind])


@contextmanager
def _logged() -> Iterator[list[str]]:
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("svll")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, _ = logger.level, logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _split(root: Path, out: Path) -> dict[str, list[Any]]:
    """Split a user's images; what is written is read back as it was."""
    entries = own_split.write_split(root, out, own_split.Options(validation=0))
    before = out.read_bytes()
    written, wanted = ({e.path: e for e in some} for some in (csv_list.read(out), entries))
    assert {path: (e.split, e.camera) for path, e in written.items()} == {
        path: (e.split, e.camera) for path, e in wanted.items()
    }
    same = {(written[path].identity, e.identity) for path, e in wanted.items()}
    assert len({one for one, _ in same}) == len({other for _, other in same}) == len(same)
    assert len(csv_list.load(out).files()) == len(entries)
    out.unlink()
    own_split.write_split(root, out, own_split.Options(validation=0))
    assert out.read_bytes() == before
    return {entry.path: [] for entry in entries}


def _check_told(root: Path, read: set[str], said: str) -> None:
    """Assert that each image below `root` was read, or the log has its name, ending or folder."""
    counts = r"(\d+) (?:junk|images are neither|images that are in no list)"
    junk = sum(map(int, re.findall(counts, said)))
    untold = []
    for place, below, names in os.walk(root):
        links = [name for name in below if os.path.islink(os.path.join(place, name))]
        for name in [*names, *links]:
            path, ending = os.path.join(place, name), os.path.splitext(name)[1].lower()
            is_picture = ending in (".jpg", ".jpeg", ".png", ".gif", ".heic", ".jpeg2000")
            if path in read or name.startswith("._") or not (is_picture or name in links):
                continue
            above = os.path.relpath(path, root).split(os.sep)
            if name in said or f"{ending} " in said or any(f"{one}/" in said for one in above):
                continue
            if not {"@eaDir", "train_test_split"} & set(above):
                untold.append(path)
    assert len(untold) <= junk, untold


# --- images ---

PICTURE = picture_files.picture(size=(7, 12))
LOSSY = (".jpg", ".jpeg")


def _files() -> dict[str, bytes]:
    """One tiny picture as files of every kind, by name."""
    found = {}
    for name, (change, options) in picture_files.KINDS.items():
        tag = Image.Exif()
        tag[picture_files.ORIENTATION] = 6
        more = {"exif": tag} if name.endswith(("jpg", "webp", "png", "tif")) else {}
        second = [PICTURE.rotate(180)] if "save_all" in options else []
        buffer = io.BytesIO()
        Image.registered_extensions()
        kind = Image.EXTENSION[os.path.splitext(name)[1].lower()]
        change(PICTURE).save(buffer, kind, **options, **more, append_images=second)
        found[name] = buffer.getvalue()
    found["colour16.png"] = picture_files.png16(np.asarray(PICTURE))
    return found


def images() -> SearchStrategy[tuple[str, bytes]]:
    return st.one_of([
        st.tuples(st.just(name), damaged(content)) for name, content in _files().items()
    ])


def read_image(value: tuple[str, bytes], folder: Path) -> None:
    """Check a file: it is refused, or all decoders give the same pixels."""
    with warnings.catch_warnings(action="ignore"):  # PIL's
        _read_image(*value, folder)


def _read_image(name: str, content: bytes, folder: Path) -> None:
    path = folder / name
    path.write_bytes(content)
    if faults := check_images([str(path)], threads=1):
        raise Unreadable(faults)
    pipeline = decode_pipeline(1, 1, torch.device("cpu"))
    pipeline.feed_input("files", file_names([str(path)]))
    [decoded] = pipeline.run()
    try:
        with Image.open(path) as image:
            opened = np.asarray(upright(image)).astype(int)
    except NO_IMAGE as error:  # only as an opened image
        if "truncated" in str(error):  # the decoder has pixels that are not in the file
            raise
        raise UserError(f"an image cannot be read ({error})") from None
    pixels = np.asarray(decoded[0])
    assert pixels.shape == opened.shape, (pixels.shape, opened.shape)
    difference = np.abs(pixels - opened).max(initial=0)
    allowed = {"colour16.png": 1, "print.jpg": 2}.get(name, 0)
    assert difference <= allowed, f"{difference} grey levels"


TARGETS = [
    Target("lists", lists(), read_list, examples=120),
    Target("folders", folders(), read_folder, examples=80),
    Target("images", images(), read_image, examples=50),
]
