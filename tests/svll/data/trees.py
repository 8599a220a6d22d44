"""Miniature trees of the six benchmarks, with the quirks of the real ones, of real tiny JPEGs."""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("market1501", "msmt17", "dukemtmc", "occluded_duke", "veri776", "vehicleid_800")


@dataclass(frozen=True)
class Tree:
    """A benchmark on disk, and what a reader must find in it (junk left out)."""

    folder: Path
    images: dict[str, dict[str, tuple[int, int]]]
    """Of each part: name below `folder` to (identity, camera from 0)."""
    listed: bool = False
    """Whether lists name the images, so that a missing one is noticed."""

    @property
    def root(self) -> Path:
        """The folder above: what a user has downloaded into."""
        return self.folder.parent

    def labels(self, part: str) -> dict[Path, tuple[int, int]]:
        """Identity and camera of each image of a part, by path."""
        return {self.folder / name: labels for name, labels in self.images[part].items()}


def build(name: str, root: Path) -> Tree:
    """Write a benchmark below `root`, under one of its usual names."""
    return BUILDERS[name](root)


def picture(path: Path, kind: str = "JPEG") -> None:
    """Write an image with unique content, 8 by 16 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (16, 8, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    path.write_bytes(buffer.getvalue())


def clutter(folder: Path) -> None:
    """Write what desktops leave behind."""
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0002_c1s1_000451_03.jpg"):
        (folder / name).write_bytes(b"\0\1")


def write_list(path: Path, lines: list[str], end: str = "\r\n") -> None:
    """Write a list; Windows' line ends, and none after the last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join(lines).encode())


def market1501(root: Path) -> Tree:
    return _named(root / "Market-1501-v15.09.15", MARKET_FOLDERS, {
        "train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.JPG", "0007_c3s3_077419_03.jpg",
                  "0007_c6s3_077419_03.jpg"],
        "query": ["0001_c1s1_001051_00.jpg", "1501_c6s2_000001_00.jpg"],
        "gallery": ["-1_c5s2_000801_02.jpg", "0000_c4s6_020810_04.jpg", "0001_c2s1_000001_00.jpg",
                    "0001_c3s1_000001_00.JPEG", "1501_c4s2_000001_00.jpg", "-1_c1s1_000401_03.jpg"],
    })  # fmt: skip


def dukemtmc(root: Path) -> Tree:
    return _named(root / "DukeMTMC-reID", MARKET_FOLDERS, DUKE)


def occluded_duke(root: Path) -> Tree:
    return _named(root / "Occluded_Duke", MARKET_FOLDERS, DUKE)


def veri776(root: Path, *, view_lists: bool = True) -> Tree:
    tree = _named(root / "VeRi", VERI_FOLDERS, {
        "train": ["0001_c001_00016450_0.jpg", "0001_c016_00016460_0.jpg",
                  "0003_c020_00000001_0.jpg", "0003_c002_00000002_0.JPG"],
        "query": ["0002_c002_00030600_0.jpg", "0005_c003_00000007_0.jpg"],
        # query images are in the gallery, too
        "gallery": ["0002_c002_00030600_0.jpg", "0002_c004_00030605_0.jpg",
                    "0005_c011_00000008_0.jpg"],
    })  # fmt: skip
    (tree.folder / "name_query.txt").write_text("0002_c002_00030600_0.jpg\n")
    if view_lists:
        points = " ".join(["-1"] * 40)
        write_list(tree.folder / "keypoint_train.txt", [
            rf"VeRi\image_train\0001_c001_00016450_0.jpg {points} 5",
            f"/home/a user/VeRi/image_train/0001_c016_00016460_0.jpg {points} 0",
            f"VeRi/image_train/0003_c002_00000002_0.JPG {points} 6",
        ])  # fmt: skip
        write_list(tree.folder / "keypoint_test.txt", [
            f"VeRi/image_test/0002_c002_00030600_0.jpg {points} 2",
            f"VeRi/image_query/0002_c002_00030600_0.jpg {points} 2",
            f"VeRi/image_test/0002_c004_00030605_0.jpg {points} 3",
            f"VeRi/image_query/0005_c003_00000007_0.jpg {points} 1",
        ])  # fmt: skip
    return tree


def msmt17(root: Path, version: str = "V1", folder: str = "") -> Tree:
    train, test = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}[version]
    top = root / (folder or f"MSMT17_{version}")
    names = {
        "train": ["0000/0000_000_01_0303morning_0008_0.jpg",
                  "0000/0000_001_15_0303noon_0008_0.jpg", "0001/0001_000_07_0303noon_0009_1.JPG",
                  "0001/0001_001_02_0303noon_0009_1.jpg"],
        "query": ["0000/0000_000_14_0303morning_0028_1_ex.jpg",
                  "0001/0001_002_02_0303noon_0009_1.jpg"],
        "gallery": ["0000/0000_005_13_0303morning_0029_1.jpg",
                    "0001/0001_004_08_0303noon_0010_1.jpg", "0001/0001_003_02_0303noon_0010_1.jpg"],
    }  # fmt: skip
    below = {"train": train, "query": test, "gallery": test}
    images = {
        part: {f"{below[part]}/{n}": (int(n[:4]), int(n.split("_")[2]) - 1) for n in found}
        for part, found in names.items()
    }
    for found in images.values():
        for name in found:
            picture(top / name)
            clutter((top / name).parent)
    lines = {part: [f"{name} {int(name[:4])}" for name in names[part]] for part in names}
    write_list(top / "list_train.txt", lines["train"][:3])
    write_list(top / "list_val.txt", lines["train"][3:], end="\n")
    write_list(top / "list_query.txt", lines["query"])
    write_list(top / "list_gallery.txt", [*reversed(lines["gallery"]), ""])
    return Tree(top, images, listed=True)


def vehicleid(root: Path) -> Tree:
    top = root / "VehicleID_V1.0"
    lists = {
        "train_list": {"0000001": 1, "0000002": 1, "0000003": 9, "0107321": 9},
        "test_list_800": {"0000010": 4, "0000011": 4, "0000012": 5, "0000013": 5, "0000014": 5},
        "test_list_1600": {"0000010": 4, "0000011": 4, "0000020": 6, "0000021": 6},
        "test_list_2400": {"0000030": 7, "0000031": 7},
    }
    endings = {"0000002": ".JPG", "0000011": ".jpeg"}
    images = {}
    for name, found in lists.items():
        write_list(top / "train_test_split" / f"{name}.txt", [f"{n} {i}" for n, i in found.items()])
        images[name] = {
            f"image/{stem}{endings.get(stem, '.jpg')}": (identity, 0)
            for stem, identity in found.items()
        }
        for image in images[name]:
            picture(top / image)
    clutter(top / "image")
    test = images["test_list_800"]
    parts = {"train": images["train_list"], "query": test, "gallery": test}
    return Tree(top, {**images, **parts}, listed=True)


def _named(folder: Path, below: dict[str, str], names: dict[str, list[str]]) -> Tree:
    """Write a benchmark whose images are named by identity and camera, one folder per part."""
    images = {}
    for part, found in names.items():
        for name in found:
            picture(folder / below[part] / name)
        clutter(folder / below[part])
        images[part] = {
            f"{below[part]}/{name}": (int(name.split("_")[0]), _camera(name) - 1)
            for name in found if not name.startswith("-1")
        }  # fmt: skip
    return Tree(folder, images)


def _camera(name: str) -> int:
    return int(name.split("_")[1].split("s")[0].lstrip("c"))


MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
VERI_FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
DUKE = {
    "train": ["0002_c1_f0046182.jpg", "0002_c8_f0044158.jpg", "0006_c2_f0000002.jpg",
              "0006_c3_f0000003.JPG"],
    "query": ["0005_c2_f0046985.jpg", "0008_c1_f0000010.jpg"],
    # 0004 is asked for by no query
    "gallery": ["0004_c7_f0000004.jpg", "0005_c5_f0051781.jpg", "0008_c6_f0000011.png"],
}  # fmt: skip
BUILDERS: dict[str, Callable[[Path], Tree]] = {
    "market1501": market1501, "msmt17": msmt17, "dukemtmc": dukemtmc,
    "occluded_duke": occluded_duke, "veri776": veri776, "vehicleid_800": vehicleid,
}  # fmt: skip
