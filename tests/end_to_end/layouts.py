"""Miniature datasets of every layout that is read, large enough to train on, of drawn figures.

Training identities are seen by cameras 1, 2 and 4, test identities by 1, 2 and 5, so that the model
meets a camera that it does not know. Images lie and are named as in the real datasets.
"""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image

from svll.world.world import FOLDERS, World, render, shots_of
from tests.svll.data.trees import MARKET_FOLDERS, VERI_FOLDERS, Tree, clutter, write_list

Kind = Literal["person", "vehicle"]
Labels = tuple[int, int]
"""Identity, and camera as the dataset numbers it."""
TRAIN, TEST = (2, 4, 7, 11, 12, 20), (1, 3, 5, 8, 9)
CAMERAS = {"train": (1, 2, 4), "test": (1, 2, 5)}
SIZES = {800: 3, 1600: 4, 2400: 5}
"""Test identities of VehicleID's three lists."""
WORLD = World(train_identities=6, test_identities=4, shots=2)


@dataclass(frozen=True)
class Shot:
    """One image, before a layout has given it a name."""

    part: str
    identity: int
    camera: int
    number: int
    """Of this image, counted over all parts."""


@dataclass(frozen=True)
class Layout:
    """One way in which datasets are given to the commands."""

    name: str
    recipe: str
    datasets: dict[str, Callable[[Path], Tree]]
    """Builders of the test sets by the names that data.test takes, the first one's first; each
    gets a folder."""
    train: dict[str, Callable[[Path], Tree]] = field(default_factory=dict)
    """Of the training sets, where they are others than the first test set."""
    words: str = "data.root={root}"
    """key=value for train.py; `root` is the folder given to the builders."""
    file: str = ""
    """The list below `root`, where the dataset is one."""
    protocol: str = "cross_camera"
    other: str = "market1501"
    """The layout whose test set these weights are tested on, too."""

    @property
    def training(self) -> dict[str, Callable[[Path], Tree]]:
        """Builders of the training sets, by name."""
        return self.train or dict(list(self.datasets.items())[:1])


# --- images ---


@cache
def drawn(kind: Kind, who: int, camera: int, number: int, ending: str = "JPEG") -> bytes:
    """Return the file of one drawn picture."""
    pixels = render(World(2, 2, kind=kind, seed=3), who, camera, number)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, ending)
    return buffer.getvalue()


def paint(path: Path, kind: Kind, shot: Shot) -> None:
    """Write a shot; identities of the training and test part are never the same figure."""
    who = shot.identity + (100 if shot.part == "train" else 200)
    ending = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn(kind, who, shot.camera % 6, shot.number, ending))


def shots() -> list[Shot]:
    """Two images of each identity under each camera; one of a test camera's two may be a query."""
    found = []
    for side, identities in (("train", TRAIN), ("test", TEST)):
        for identity in identities:
            for camera in CAMERAS[side]:
                for again in (0, 1):
                    is_query = side == "test" and camera != 2 and again == 0
                    part = side if side == "train" else "query" if is_query else "gallery"
                    found.append(Shot(part, identity, camera, len(found)))
    return found


# --- layouts whose images are named by identity and camera ---


def named(
    root: Path, folders: dict[str, str], name: Callable[[Shot], str], kind: Kind = "person",
    also: Iterable[Shot] = (),
) -> Tree:
    """Write parts of images named by identity and camera; the ending's case varies."""
    images: dict[str, dict[str, Labels]] = {part: {} for part in folders}
    for shot in (*shots(), *also):
        below = f"{folders[shot.part]}/{name(shot)}" + (".JPG" if shot.number % 7 == 3 else ".jpg")
        paint(root / below, kind, shot)
        if shot.identity != -1:
            images[shot.part][below] = shot.identity, shot.camera
    for folder in folders.values():
        clutter(root / folder)
    return Tree(root, images)


def market_name(shot: Shot) -> str:
    identity = str(shot.identity) if shot.identity < 0 else f"{shot.identity:04d}"
    return f"{identity}_c{shot.camera}s1_{shot.number:06d}_00"


def market1501(root: Path, folder: str = "Market-1501-v15.09.15") -> Tree:
    """With a distractor (0000) and junk (-1) in the gallery."""
    also = Shot("gallery", 0, 2, 900), Shot("gallery", -1, 5, 901)
    return named(root / folder, MARKET_FOLDERS, market_name, also=also)


def dukemtmc(root: Path, folder: str = "DukeMTMC-reID") -> Tree:
    """With an identity in the gallery that no query shows."""
    return named(
        root / folder, MARKET_FOLDERS, also=[Shot("gallery", 77, 1, 900)],
        name=lambda shot: f"{shot.identity:04d}_c{shot.camera}_f{shot.number:07d}",
    )


def occluded_duke(root: Path) -> Tree:
    return dukemtmc(root, "Occluded_Duke")


def folder(root: Path) -> Tree:
    """Somebody's own images in Market-1501's layout."""
    return market1501(root, "mine")


def veri776(root: Path, *, lists: bool = True) -> Tree:
    """Query images stand in the gallery, too; one training image is in no viewpoint list."""
    also = [Shot("gallery", *_three(shot)) for shot in shots() if shot.part == "query"]
    tree = named(
        root / "VeRi", VERI_FOLDERS, kind="vehicle", also=also,
        name=lambda shot: f"{shot.identity:04d}_c{shot.camera:03d}_{shot.number:08d}_0",
    )
    if lists:
        points = " ".join(["-1"] * 40)
        for part, names in (("train", ["train"]), ("test", ["query", "gallery"])):
            below = [name for one in names for name in tree.images[one]][1:]
            lines = [rf"VeRi\{name} {points} {_view(name)}" for name in below]
            write_list(tree.folder / f"keypoint_{part}.txt", lines)
    return tree


def _three(shot: Shot) -> tuple[int, int, int]:
    return shot.identity, shot.camera, shot.number


def _view(name: str) -> int:
    return int(name.split("_")[-2]) % 8


# --- layouts with lists ---


def msmt17(root: Path, version: str = "V1") -> Tree:
    """Identities of the training and the test part both begin at 0; training has two lists."""
    folders = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}[version]
    top = root / f"MSMT17_{version}"
    images: dict[str, dict[str, Labels]] = {"train": {}, "query": {}, "gallery": {}}
    lines: dict[str, list[str]] = {part: [] for part in images}
    for shot in shots():
        known = TRAIN if shot.part == "train" else TEST
        identity = known.index(shot.identity)
        name = (f"{identity:04d}/{identity:04d}_{shot.number:03d}_{shot.camera:02d}_0303morning_"
                f"{shot.number:04d}_0.jpg")
        below = f"{folders[shot.part != 'train']}/{name}"
        paint(top / below, "person", shot)
        images[shot.part][below] = identity, shot.camera
        lines[shot.part].append(f"{name} {identity}")
    write_list(top / "list_train.txt", lines["train"][:20])
    write_list(top / "list_val.txt", lines["train"][20:], end="\n")
    write_list(top / "list_query.txt", lines["query"])
    write_list(top / "list_gallery.txt", [*reversed(lines["gallery"]), ""])
    return Tree(top, images, listed=True)


def vehicleid(root: Path, size: int) -> Tree:
    """The whole dataset, of which the test list of one size is expected. No cameras are known."""
    top = root / "VehicleID_V1.0"
    images: dict[str, Labels] = {}
    for shot in shots():
        below = f"image/{shot.number:07d}.jpg"
        paint(top / below, "vehicle", shot)
        images[below] = shot.identity, 0
    lists = {"train_list": TRAIN} | {f"test_list_{n}": TEST[:most] for n, most in SIZES.items()}
    for name, identities in lists.items():
        write_list(top / "train_test_split" / f"{name}.txt", [
            f"{Path(below).stem} {identity}" for below, (identity, _) in images.items()
            if identity in identities
        ])  # fmt: skip
    train, test = (
        {below: labels for below, labels in images.items() if labels[0] in identities}
        for identities in (TRAIN, TEST[: SIZES[size]])
    )
    return Tree(top, {"train": train, "query": test, "gallery": test}, listed=True)


def own_images(root: Path) -> Path:
    """Write what `data.py split` makes a list of: one folder of images, named by camera."""
    for shot in shots():
        paint(root / "own" / f"{market_name(shot)}.jpg", "person", shot)
    return root / "own"


def split_list(root: Path) -> Tree:
    """Read what `data.py split` has written to own.csv."""
    images: dict[str, dict[str, Labels]] = {}
    with (root / "own.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            images.setdefault(row["split"], {})[row["path"]] = (
                int(row["identity"]), int(row["camera"])
            )
    return Tree(root, images, listed=True)


def plain_list(root: Path) -> Tree:
    """A list without cameras; identities are words, images are in folders of all sorts."""
    words = {identity: f"no. {place}" for place, identity in enumerate((*TRAIN, *TEST))}
    numbers = {word: place for place, word in enumerate(sorted(words.values()))}
    images: dict[str, dict[str, Labels]] = {"train": {}, "query": {}, "gallery": {}}
    lines = ["path,identity,split"]
    for shot in shots():
        ending = "png" if shot.number % 3 else "jpeg"
        below = f"{shot.part}/mine/{shot.number}.{ending}"
        paint(root / below, "person", shot)
        images[shot.part][below] = numbers[words[shot.identity]], 0
        lines.append(f"{below},{words[shot.identity]},{shot.part}")
    write_list(root / "plain.csv", lines)
    return Tree(root, images, listed=True)


def synthetic(root: Path, world: World = WORLD) -> Tree:
    """What a drawn world holds, by its own account of it; the command or the run draws it."""
    parts = dict(zip(FOLDERS, ("train", "query", "gallery"), strict=True))
    images: dict[str, dict[str, Labels]] = {part: {} for part in parts.values()}
    for shot in shots_of(world):
        if not shot.junk:
            label = int(shot.name.split("_")[0])
            images[parts[shot.folder]][f"{shot.folder}/{shot.name}"] = label, shot.camera + 1
    return Tree(root / "world", images)
