"""The image encoder as an ONNX file with its preparation of images, checked against torch.

Letters: B images, H x W pixels, D width of a feature.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.base.files import atomic_write
from svll.data.side_labels import UNSEEN
from svll.models.extractor import prepare
from svll.models.trained_model import LoadedModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference from torch, as a share of the feature's length."""
BATCHES = (1, 3)
"""Numbers of images that a file is checked with."""
_SEED = 1


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    difference: float
    """The largest found, as a share of the feature's length."""
    images: int
    """How many it was looked for in."""


def export_onnx(
    model: LoadedModel, out: Path, *, camera: int | None = None, dataset: str | None = None,
    images: Sequence[Path] = (),
) -> Exported:
    """Write `model`'s image encoder to `out`: "images" [B, 3, H, W] to "features" [B, D].

    Inputs are normalised float32, features are not normalised; how images are prepared stands in
    the file's metadata. Side information is left out, or that of one `camera` (its number in
    `dataset`, which is needed where the model was trained on several) made part of the encoder. The
    file is compared with torch on random images and on `images`, and does not appear when they
    differ. Raises UserError for that, for a package that is missing, and for a camera where the
    model knows none.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; pip install '.[export]'")
    encoder = _Encoder(model, camera, dataset)
    samples = _random(model)
    if images:
        samples += _batches(prepare(images, model))
    content = _converted(encoder, model, camera)
    try:
        with atomic_write(out) as private:
            private.write_bytes(content)
            difference = max(_differences(private, encoder, samples))
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{out}: not written, for its features differ from torch's by "
                    f"{difference:.1e} of their length, {TOLERANCE:.0e} is allowed; try another "
                    "version of onnxscript or onnxruntime"
                )
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Exported(out, difference, sum(map(len, samples)))


class _Encoder(nn.Module):
    """Images alone in, test features out."""

    places: Tensor

    def __init__(self, model: LoadedModel, camera: int | None, dataset: str | None) -> None:
        super().__init__()
        self.image, self.has_camera = model.image, camera is not None
        places = np.zeros((2, 1), np.int64)
        if camera is not None:
            if model.image.side is None:
                raise UserError(f"camera {camera}: the model has no side information")
            places = np.stack(model.places([camera], dataset))
            if places[0] == UNSEEN:
                raise UserError(
                    f"camera {camera}: the model was trained with the cameras "
                    + "; ".join(f"{', '.join(map(str, cameras))} of {name or 'its dataset'}"
                                for name, cameras in model.side_labels.cameras.items())
                )
        self.register_buffer("places", torch.from_numpy(places), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        places = self.places.expand(2, images.shape[0]) if self.has_camera else ()
        return self.image.encode_image(images, *places)


def _converted(encoder: nn.Module, model: LoadedModel, camera: int | None) -> bytes:
    """Return the encoder as ONNX, with any number of images, and the metadata."""
    import onnx

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # tells what it did not optimise
    example = torch.zeros(2, 3, model.height, model.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx warns of its own internals
        program: Any = torch.onnx.export(
            encoder, (example,), dynamo=True, verbose=False,
            input_names=["images"], output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata(model, camera))
    return bytes(proto.SerializeToString())


def metadata(model: LoadedModel, camera: int | None) -> dict[str, str]:
    """Return how images become "images", as the file's properties."""
    return {
        "height": str(model.height), "width": str(model.width),
        "mean": json.dumps(model.mean), "std": json.dumps(model.std),
        "orientation": "upright by EXIF", "resize": "bilinear, antialias",
        "colours": "RGB, divided by 255",
        "camera": "none" if camera is None else str(camera),
    }


def _random(model: LoadedModel) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(_SEED)
    return [torch.randn(b, 3, model.height, model.width, generator=numbers) for b in BATCHES]


def _batches(images: Tensor) -> list[Tensor]:
    """Return images in batches of 1 and 3 in turn; the last may be smaller."""
    found: list[Tensor] = []
    start = 0
    while start < len(images):
        size = BATCHES[len(found) % len(BATCHES)]
        found.append(images[start : start + size])
        start += size
    return found


def _differences(path: Path, encoder: nn.Module, samples: list[Tensor]) -> Iterator[float]:
    """Yield each batch's largest difference as a share of the feature's length."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images in samples:
        with torch.no_grad():
            expected = encoder(images)
        found = torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])
        yield ((found - expected).norm(dim=1) / expected.norm(dim=1)).max().item()
