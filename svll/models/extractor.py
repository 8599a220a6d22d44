"""Features of any images: the model that `svll.load` returns.

    import svll
    model = svll.load("runs/market1501/0a1b2c3d4e5f")
    features = model.encode(["a.jpg", "b.jpg"])      # [2, D], of unit length

Files are read as in tests, by the same loader: decoded and turned upright (see
`harness.images.pixels`), resized bilinearly with antialias, normalised. On a CPU opened images and
arrays give the same pixels as files; a GPU decodes and resizes files itself, some grey levels off.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.base.errors import UserError
from harness.images.decoding import resized
from harness.images.pixels import NO_IMAGE, Fault, upright
from harness.training.precision import full_precision
from svll.base.labels import on_host
from svll.data.side_labels import UNSEEN
from svll.models.trained_model import LoadedModel

log = logging.getLogger(__name__)

TEST_RESIZE: Final = "bilinear"
"""How images are resized outside of stage 2's training (released code: torchvision's default)."""
_FILE = str | os.PathLike
Rows: TypeAlias = NDArray[np.int64]
Batches: TypeAlias = Iterator[tuple[Rows, Tensor]]
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A file, an opened image, or its pixels [h, w, 3], red first."""


class Extractor:
    """A trained model with its image preprocessing; it encodes `batch` images at a time."""

    def __init__(self, model: LoadedModel, *, batch: int = 64, name: str = "") -> None:
        """name: shown in the repr, such as the path of the weights."""
        self.model, self.batch, self.name = model, batch, name

    def __repr__(self) -> str:
        model = self.model
        return (f"Extractor({self.name!r}, {model.height}x{model.width} pixels, "
                f"{model.feature_width}-d features, {model.device})")

    def encode(
        self, images: Picture | Sequence[Picture], camera: int | Sequence[int] | None = None,
        *, dataset: str | None = None,
    ) -> NDArray[np.float32]:
        """Return L2-normalised features [n, D] of one image or a list of them.

        camera: its number in its dataset (Market-1501's c1 is 1), one for all images or one for
        each; dataset: its dataset, if the model was trained on several. Both matter only to a model
        with side information; cameras outside training are logged and get what the model's
        `model.sie_unseen` says. Opened images are turned upright by their EXIF orientation, arrays
        are not. Raises UserError, with the path, for a file that cannot be decoded.
        """
        is_one = isinstance(images, str | os.PathLike | Image.Image | np.ndarray)
        listed: Sequence[Any] = [images] if is_one else images  # type: ignore[assignment]
        places = self._places(camera, dataset, len(listed))
        order, found = [], []
        for rows, batch in _batches(listed, self.model, self.batch):
            order.append(rows)
            found.append(self.encode_batch(batch, None if places is None else places[rows]))
        if not found:
            return np.empty((0, self.model.feature_width), np.float32)
        return _in_order(order, found).numpy()

    def read(self, paths: Sequence[str], broken: list[Fault]) -> Batches:
        """Yield rows [b] of `paths` and images [b, 3, H, W]; unreadable files go to `broken`."""
        return _read(paths, self.model, self.batch, broken)

    def encode_batch(self, batch: Tensor, places: Tensor | None = None) -> Tensor:
        """Return unit features [b, D] on the CPU of model input; places [b, 2]: `model.places`."""
        side = () if places is None else places.T
        with torch.no_grad(), full_precision():
            features = self.model.encode_image(batch, *side)
        return torch.nn.functional.normalize(features.float(), dim=1).cpu()

    def _places(
        self, camera: int | Sequence[int] | None, dataset: str | None, count: int
    ) -> Tensor | None:
        """Return the indices of each image's camera and view [count, 2]."""
        if camera is None:
            return None
        given = np.asarray(on_host(camera))
        numbers = np.full(count, given) if given.ndim == 0 else given
        if numbers.shape != (count,):
            raise UserError(f"{len(numbers)} cameras for {count} images; give one or {count}")
        side = self.model.image.side
        if side is None:
            return None
        places = np.stack(self.model.places(numbers, dataset), axis=1)
        if len(unseen := np.unique(numbers[places[:, 0] == UNSEEN])):
            log.warning("cameras %s were not trained with (model.sie_unseen)", unseen.tolist())
        if side.shape[1] > 1 and (places[:, 1] == UNSEEN).any():
            log.warning("the images' views are unknown (model.sie_unseen)")
        return torch.from_numpy(places)


def preprocess(images: Sequence[Picture], model: LoadedModel) -> Tensor:
    """Return images as model input [n, 3, H, W]; raises UserError as `encode` does."""
    return _in_order(*zip(*_batches(images, model, len(images)), strict=True))


def _in_order(order: Sequence[Rows], found: Sequence[Tensor]) -> Tensor:
    """Return the batches [b, ...] of the rows `order` as one tensor, in the order of rows."""
    return torch.cat(list(found))[np.concatenate(order).argsort()]


def _batches(images: Sequence[Picture], model: LoadedModel, size: int) -> Batches:
    """Yield rows [b] of `images` and these as model input [b, 3, H, W], files first."""
    is_file = np.array([isinstance(image, _FILE) for image in images], dtype=bool)
    files, others = np.flatnonzero(is_file), np.flatnonzero(~is_file)
    paths = [os.fspath(image) for image in images if isinstance(image, _FILE)]
    for rows, batch in _read(paths, model, size):
        yield files[rows], batch
    for start in range(0, len(others), size):
        rows = others[start : start + size]
        batch = torch.stack([_normalised(images[row], model) for row in rows.tolist()])
        yield rows, batch.to(model.device)


def _read(
    paths: Sequence[str], model: LoadedModel, size: int, broken: list[Fault] | None = None
) -> Batches:
    from harness.images.loader import read_images  # DALI, Numba: not for arrays
    from harness.images.views import Transform

    transform = Transform(model.height, model.width, TEST_RESIZE, model.mean, model.std)
    return read_images(paths, transform, broken, batch_size=size, device=str(model.device))


def _normalised(image: Image.Image | NDArray[np.uint8], model: LoadedModel) -> Tensor:
    """Return an opened image or pixels [h, w, 3] as model input [3, H, W]."""
    pixels = resized(_pixels(image), model.height, model.width, TEST_RESIZE)
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))
    return (torch.from_numpy(pixels).permute(2, 0, 1).float().div(255) - mean) / std


def _pixels(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        try:
            return np.array(upright(image))
        except NO_IMAGE as error:
            raise UserError(f"an image cannot be read ({error})") from None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an array is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3]")
    return image
