"""A synthetic world in Market-1501's layout, to stand in for a benchmark.

Six cameras show drawn persons or vehicles. They differ in colour, light, sharpness, distance,
direction and surroundings, and some figures are occluded. Each picture is a function of (seed,
identity, camera, shot) alone, so a larger world contains the smaller one of the same seed.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.base.errors import UserError
from harness.base.files import make_folder, read_json, rename, sync_all, write_json, write_text
from harness.base.machine import usable_cores
from svll.data.readers.drawn_world import VIEWS
from svll.data.readers.market1501 import FOLDERS as PARTS
from svll.world import drawing, persons, vehicles
from svll.world.drawing import SUPERSAMPLE, Canvas, Figure, Stream, camera_of, generator
from svll.world.person_painter import PersonFigure
from svll.world.vehicle_painter import VehicleFigure

DRAWING = 1
"""Raised when pictures change, so that folders of older versions are not reused."""
CAMERAS = 6
MARKER = "world.json"
FOLDERS = tuple(PARTS.values())
JPEG_QUALITY = 92
_CHUNK = 100  # images that a worker process draws at a time

Kind = Literal["person", "vehicle"]

# First identities of figures that are no training or test identities.
_DISTRACTORS, _JUNK, _PASSERS_BY = 1_000_000_000, 1_100_000_000, 1_200_000_000


LARGEST = 200_000
"""Images of all identities under one camera: more would take days to draw."""


@dataclass(frozen=True)
class World:
    """The number, kind and look of the figures."""

    train_identities: int
    test_identities: int
    kind: Kind = "person"
    shots: int = 3
    """Images of an identity per camera that sees it; each is seen by four to six cameras."""
    seed: int = 1
    """Another seed gives other figures, cameras and surroundings."""
    occlusion: float = 0.15
    """Share of the images in which an object or a passer-by hides part of the figure."""
    query_occlusion: float | None = None
    """Share of the occluded queries; None: as `occlusion`."""
    height: int = 0
    width: int = 0
    """Pixels of an image file, plus or minus a tenth; 0: 96 x 48 for persons, 80 x 80 vehicles."""
    first_identity: int = 0
    """Identities begin after this one: worlds with disjoint ranges share no identity."""

    def __post_init__(self) -> None:
        if (self.train_identities + self.test_identities) * self.shots > LARGEST:
            raise UserError(f"a world of {self.train_identities} and {self.test_identities} "
                            f"identities, {self.shots} images each per camera, is too large; at "
                            f"most {LARGEST} images per camera are drawn")
        height, width = (96, 48) if self.kind == "person" else (80, 80)
        object.__setattr__(self, "height", self.height or height)
        object.__setattr__(self, "width", self.width or width)

    @property
    def train_ids(self) -> range:
        """Training identities: the odd ones, so that both parts can grow."""
        return range(self.first_identity + 1, self.first_identity + 2 * self.train_identities, 2)

    @property
    def test_ids(self) -> range:
        """Identities of query and gallery: the even ones."""
        return range(self.first_identity + 2, self.first_identity + 2 * self.test_identities + 1, 2)

    @property
    def distractors(self) -> int:
        """Number of gallery images of identities without a query."""
        return self.test_identities * 3 // 2

    @property
    def junk(self) -> int:
        """Number of images in the gallery's folder that show nobody, named -1."""
        return self.test_identities // 4


SIZES: dict[str, World] = {
    "tiny": World(train_identities=8, test_identities=8, shots=2),
    "small": World(train_identities=60, test_identities=60),
}


def named_world(size: str | int, kind: Kind = "person", seed: int = 1) -> World:
    """Return a world by its size: a name, or the number of training and of test identities.

    Raises UserError for an unknown size.
    """
    size = str(size)
    if size in SIZES:
        return replace(SIZES[size], kind=kind, seed=seed, height=0, width=0)
    if not re.fullmatch(r"0*[0-9]{1,18}", size) or int(size) < 2:
        raise UserError(f"no synthetic world of size {size!r}: give {', '.join(SIZES)} or a number "
                        "of identities, at least 2")
    return World(int(size), int(size), kind=kind, seed=seed)


class Shot(NamedTuple):
    """One image of a world: its file and what it shows."""

    folder: str
    name: str
    identity: int
    camera: int
    shot: int
    junk: bool = False


def shots_of(world: World) -> Iterator[Shot]:
    """List the images of a world: train, then query and gallery by identity, distractors, junk."""
    train, query, gallery = FOLDERS
    parts = ((world.train_ids, train, train), (world.test_ids, query, gallery))
    for identities, first, others in parts:
        for identity in identities:
            for camera, shot in product(cameras_of(world, identity), range(world.shots)):
                yield _shot(others if shot else first, identity, identity, camera, shot)
    for number in range(world.distractors):
        yield _shot(gallery, 0, _DISTRACTORS + number, number % CAMERAS, number)
    for number in range(world.junk):
        yield _shot(gallery, -1, _JUNK + number, number % CAMERAS, number)


def _shot(folder: str, label: int, identity: int, camera: int, shot: int) -> Shot:
    number = f"{label:04d}" if label >= 0 else str(label)
    name = f"{number}_c{camera + 1}s1_{25 * shot + 1 + identity % 25:06d}_00.jpg"
    return Shot(folder, name, identity, camera, shot, junk=label < 0)


@lru_cache(maxsize=4096)
def cameras_of(world: World, identity: int) -> tuple[int, ...]:
    """Return the cameras, counted from 0, that see an identity."""
    rng = generator(world.seed, Stream.PRESENCE, identity)
    return tuple(sorted(rng.permutation(CAMERAS)[: rng.integers(4, CAMERAS + 1)].tolist()))


def render(
    world: World, identity: int, camera: int, shot: int, *, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return one picture, uint8 [H, W, 3], of `size` (H, W) or else the world's."""
    height, width = size or (world.height, world.width)
    rng = generator(world.seed, Stream.SCENE, camera, shot, identity)
    image = drawing.scene(world.seed, camera, _canvas_size(world), rng)
    _figure(world, identity, camera, shot).paint(image)
    if is_occluded(world, identity, camera, shot):
        _occlude(world, image, identity, camera, shot)
    rng = generator(world.seed, Stream.EXPOSURE, identity, camera, shot)
    return drawing.photograph(image, camera_of(world.seed, camera), (width, height), rng)


def is_occluded(world: World, identity: int, camera: int, shot: int) -> bool:
    """Tell whether an object or a passer-by hides part of the figure."""
    rng = generator(world.seed, Stream.OCCLUDER, identity, camera, shot)
    is_query = shot == 0 and identity in world.test_ids
    share = world.query_occlusion if is_query else None
    return rng.random() < (world.occlusion if share is None else share)


def caption(world: World, identity: int, camera: int, shot: int) -> str:
    """Return an English sentence about what a picture shows, in words of the `vocabulary`."""
    rng = generator(world.seed, Stream.WORDS, identity, camera, shot)
    return _figure(world, identity, camera, shot).describe(rng)


def view_of(world: World, identity: int, camera: int, shot: int) -> int:
    """Return the visible side of a vehicle (`vehicles.VIEWS`); 0 for persons."""
    return _figure(world, identity, camera, shot).view


def vocabulary() -> tuple[str, ...]:
    """Return all words of all captions, sorted, without commas and full stops."""
    return tuple(sorted(persons.words() | vehicles.words()))


@lru_cache(maxsize=4096)
def _person(seed: int, identity: int) -> persons.Person:
    return persons.Person(generator(seed, Stream.IDENTITY, identity))


@lru_cache(maxsize=4096)
def _vehicle(seed: int, identity: int) -> vehicles.Vehicle:
    return vehicles.Vehicle(generator(seed, Stream.IDENTITY, identity))


def _canvas_size(world: World) -> tuple[int, int]:
    return world.width * SUPERSAMPLE, world.height * SUPERSAMPLE


def _figure(world: World, identity: int, camera: int, shot: int, *, aside: float = 0.0) -> Figure:
    rng = generator(world.seed, Stream.SHOT, identity, camera, shot)
    seed, size, by = world.seed, _canvas_size(world), camera_of(world.seed, camera)
    if world.kind == "person":
        return PersonFigure(rng, _person(seed, identity), size, by, aside)
    return VehicleFigure(rng, _vehicle(seed, identity), size, by, aside)


def _occlude(world: World, image: Image.Image, identity: int, camera: int, shot: int) -> None:
    """Draw an object, or in a quarter of the cases another figure, in front of the figure."""
    rng = generator(world.seed, Stream.OCCLUDER, identity, camera, shot, 1)
    if rng.random() >= 0.25:
        drawing.occlude(Canvas(image), rng)
        return
    aside = rng.uniform(0.35, 0.55) * (1 if rng.random() < 0.5 else -1)
    passer_by = _PASSERS_BY + int(rng.integers(0, 10_000))
    _figure(world, passer_by, camera, shot, aside=aside).paint(image)


def write_world(world: World, root: str | Path) -> Path:
    """Write a world's images to the folder `root`, unless it has them, and return it.

    The images are written under a private name beside `root` and renamed, so several processes may
    write the same world. A world that has lost images is written again. Raises UserError for a
    folder that holds anything else, and for a full disk.
    """
    root = Path(root)
    if _is_whole(root, world):
        return root
    private = root.parent / f".{root.name}.{uuid.uuid4().hex}"
    try:
        make_folder(private)
        _fill(world, private)
        sync_all(private)
        _publish(private, root, world)
    except OSError as error:
        raise UserError(f"the synthetic world could not be written to {root}: {error}") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return root


def ensure_world(world: World, cache_root: str | Path) -> Path:
    """Return a world's folder under `cache_root`, after writing it if it is missing."""
    text = json.dumps(_signature(world), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return write_world(world, Path(cache_root) / f"{world.kind}-{digest}")


def _signature(world: World) -> dict[str, Any]:
    signature = {"drawing": DRAWING, **asdict(world)}
    if world.query_occlusion is None:  # older worlds, which lack this key, keep their signature
        del signature["query_occlusion"]
    return signature


def _is_whole(root: Path, world: World) -> bool:
    """Tell whether `root` holds all images of the world; UserError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / MARKER
    if not marker.is_file():
        raise UserError(f"{root} is not empty and holds no synthetic world: name another folder")
    written = read_json(marker)
    images = written.pop("images", None)
    if written != _signature(world):
        raise UserError(f"{root} holds another synthetic world: name another folder or delete it")
    return (root / VIEWS).is_file() and images == len(list(root.glob("*/*.jpg")))


def _publish(private: Path, root: Path, world: World) -> None:
    """Rename the private folder to `root`; another process may have been faster."""
    for last in (False, False, True):
        try:
            rename(private, root)  # replaces an empty folder, too
            return
        except OSError:
            if _is_whole(root, world):
                return
            if last:
                raise
        broken = root.parent / f".{root.name}.{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):  # another process is replacing it
            os.rename(root, broken)
        shutil.rmtree(broken, ignore_errors=True)


def _fill(world: World, folder: Path) -> None:
    """Write the images, the list of their views and, last, the marker."""
    for name in FOLDERS:
        (folder / name).mkdir()
    shots = list(shots_of(world))
    chunks = [shots[i : i + _CHUNK] for i in range(0, len(shots), _CHUNK)]
    write = partial(_write_shots, world, folder)
    workers = min(len(usable_cores()), len(chunks) // 2, 16)
    if workers < 2:
        parts = list(map(write, chunks))
    else:
        # Not forked: the caller may hold threads (torch, DALI) that do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            parts = list(pool.map(write, chunks))
    views = zip(shots, chain.from_iterable(parts), strict=True)
    lines = [f"{shot.folder}/{shot.name} {view}\n" for shot, view in views]
    write_text(folder / VIEWS, "".join(lines))
    write_json(folder / MARKER, {**_signature(world), "images": len(shots)})


def _write_shots(world: World, folder: Path, shots: list[Shot]) -> list[int]:
    """Write some images and return the view of each."""
    for shot in shots:
        pixels = _file_pixels(world, shot)
        Image.fromarray(pixels).save(folder / shot.folder / shot.name, quality=JPEG_QUALITY)
    return [view_of(world, shot.identity, shot.camera, shot.shot) for shot in shots]


def _file_pixels(world: World, shot: Shot) -> NDArray[np.uint8]:
    """Return the pixels of an image file, uint8 [H, W, 3]; detections differ in size."""
    rng = generator(world.seed, Stream.SIZE, shot.identity, shot.camera, shot.shot)
    height, width = (round(side * rng.uniform(0.9, 1.1)) for side in (world.height, world.width))
    pixels = render(world, shot.identity, shot.camera, shot.shot, size=(height, width))
    if not shot.junk:
        return pixels
    # A false detection: a shoulder or a foot, and the background.
    top = height // 2 if rng.random() < 0.5 else 0
    corner = Image.fromarray(pixels[top : top + height // 2, width * 3 // 5 :])
    return np.asarray(corner.resize((width, height), Image.Resampling.BILINEAR))
