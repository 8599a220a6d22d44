"""The image encoder as an ONNX file that describes its preprocessing, checked against torch.

Letters: B images, H x W pixels, D width of a feature.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.base.files import atomic_write
from svll.data.side_labels import UNSEEN
from svll.models.extractor import preprocess
from svll.models.trained_model import LoadedModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference from torch, as a share of the feature's length."""
BATCHES = (1, 3)
"""Batch sizes of the check."""
_SEED = 1


class Exported(NamedTuple):
    """A written file and its check."""

    path: Path
    difference: float
    """Largest difference from torch, as a share of the feature's length."""
    images: int
    """Number of compared images."""


def export_onnx(
    model: LoadedModel, out: Path, *, camera: int | None = None, dataset: str | None = None,
    images: Sequence[Path] = (),
) -> Exported:
    """Write `model`'s image encoder to `out`: "images" [B, 3, H, W] to "features" [B, D].

    Inputs are normalised float32, features are not normalised; the file's metadata describes the
    preprocessing. Side information is left out, or that of one `camera` is built in (its number in
    `dataset`, needed where the model was trained on several). The model may be on any device. The
    export is compared with torch on random images and on `images`, on the CPU, and `out` does not
    appear when they differ. Raises UserError for that, for a missing package, and for a camera that
    the model has no vector for.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; pip install '.[export]'")
    if model.device.type != "cpu":
        model = deepcopy(model).to("cpu")
    encoder = _Encoder(model, camera, dataset)
    random = torch.Generator().manual_seed(_SEED)
    samples = [torch.randn(b, 3, model.height, model.width, generator=random) for b in BATCHES]
    if images:
        samples += _batches(preprocess(images, model))
    content = _converted(encoder, model, camera)
    try:
        with atomic_write(out) as private:
            private.write_bytes(content)
            difference = max(_differences(private, encoder, samples))
            if not difference <= TOLERANCE:
                raise UserError(f"{out}: not written: its features differ from torch's by "
                                f"{difference:.1e} of their length (limit {TOLERANCE:.0e}); try "
                                "another version of onnxscript or onnxruntime")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return Exported(out, difference, sum(map(len, samples)))


class _Encoder(nn.Module):
    """Images in, test features out; the camera is fixed."""

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
    """Return the encoder as ONNX with metadata; the number of images is free."""
    import onnx

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # lists what it did not optimise
    example = torch.zeros(2, 3, model.height, model.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.onnx warns of its own internals
        program: Any = torch.onnx.export(
            encoder, (example,), dynamo=True, verbose=False,
            input_names=["images"], output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {
        "height": str(model.height), "width": str(model.width),
        "mean": json.dumps(model.mean), "std": json.dumps(model.std),
        "orientation": "upright by EXIF", "resize": "bilinear, antialias",
        "colours": "RGB, divided by 255",
        "camera": "none" if camera is None else str(camera),
    })
    return bytes(proto.SerializeToString())


def _batches(images: Tensor) -> list[Tensor]:
    """Return images in batches of 1 and 3 in turn; the last may be smaller."""
    found: list[Tensor] = []
    while len(images):
        size = BATCHES[len(found) % len(BATCHES)]
        found.append(images[:size])
        images = images[size:]
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
