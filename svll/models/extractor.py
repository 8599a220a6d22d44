"""Features of anybody's images: what `svll.load` gives. Needs torch and PIL alone.

    import svll
    model = svll.load("runs/market1501/0a1b2c3d4e5f")
    features = model.encode(["a.jpg", "b.jpg"])      # [2, D], of unit length

Images are prepared as in tests: RGB, resized bilinearly with antialias, normalised.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from harness.errors import UserError
from svll.data.side_labels import UNSEEN
from svll.models.loaded import LoadedModel

log = logging.getLogger(__name__)

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A file, an opened image, or its pixels [H, W, 3], red first."""


class Extractor:
    """A trained model with the preparation of its images."""

    def __init__(self, model: LoadedModel, *, batch: int = 64) -> None:
        """Take a model; `batch` images are encoded at a time."""
        self.model, self.batch = model, batch

    def encode(
        self, images: Picture | Sequence[Picture], camera: int | Sequence[int] | None = None,
        *, dataset: str | None = None,
    ) -> NDArray[np.float32]:
        """Return features [n, D] of unit length, of one image or a list of them.

        `camera` is the number of the camera in its dataset (Market-1501's c1 is 1), for all images
        or for each; `dataset` names the dataset where the model was trained on several. It matters
        only to a model with side information; a camera that was not trained with gets what the
        model's `model.sie_unseen` says, and the log names it.
        Raises UserError, with the path, for a file that is no readable image.
        """
        is_one = isinstance(images, str | os.PathLike | Image.Image | np.ndarray)
        listed: Sequence[Any] = [images] if is_one else images  # type: ignore[assignment]
        places = self._places(camera, dataset, len(listed))
        found = [
            self._encode(listed[rows], None if places is None else places[rows])
            for rows in self._batches(len(listed))
        ]
        return torch.cat(found).numpy() if found else np.empty((0, 0), dtype=np.float32)

    def _batches(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.batch) for start in range(0, count, self.batch))

    def _encode(self, images: Sequence[Picture], places: Tensor | None) -> Tensor:
        """Return unit features [b, D] of a batch, on the CPU."""
        return self.encode_prepared(
            torch.stack([prepare(image, self.model) for image in images]), places
        )

    def encode_prepared(self, batch: Tensor, places: Tensor | None = None) -> Tensor:
        """Return unit features [b, D], on the CPU, of what `prepare` made of images [b, 3, H, W].

        places [b, 2]: each one's camera and view, as `model.places` gives them.
        """
        device = next(self.model.parameters()).device
        with torch.no_grad():
            features = self.model.encode_image(
                batch.to(device), *(() if places is None else places.to(device).T)
            )
        return torch.nn.functional.normalize(features.float(), dim=1).cpu()

    def _places(
        self, camera: int | Sequence[int] | None, dataset: str | None, count: int
    ) -> Tensor | None:
        """Return the places of each image's camera and view [count, 2]."""
        if camera is None:
            return None
        numbers = np.asarray(camera)
        if numbers.ndim == 0:
            numbers = np.full(count, numbers)
        if numbers.shape != (count,):
            raise UserError(f"{len(numbers)} cameras for {count} images; give one or {count}")
        places = np.stack(self.model.places(numbers, dataset), axis=1)
        if len(unseen := np.unique(numbers[places[:, 0] == UNSEEN])):
            log.warning("cameras %s were not trained with (model.sie_unseen)", unseen.tolist())
        side = self.model.image.side
        if side is not None and side.shape[1] > 1 and (places[:, 1] == UNSEEN).any():
            log.warning("the images' views are unknown (model.sie_unseen)")
        return torch.from_numpy(places)


def prepare(image: Picture, model: LoadedModel) -> Tensor:
    """Return one image as the model takes it [3, H, W]."""
    picture = opened(image).resize((model.width, model.height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))
    return (pixels - mean) / std


def opened(image: Picture) -> Image.Image:
    """Return an image in RGB; raises UserError for what is none, with the path of a file."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(
                f"an array is {image.dtype} {list(image.shape)}; expected is uint8 [H, W, 3]"
            )
        return Image.fromarray(image)
    try:
        with Image.open(image) as file:
            return file.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{image}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{image}: not an image") from None
    # what PIL's decoders raise for broken content
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{image}: cannot be read ({error})") from None
