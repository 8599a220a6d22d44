"""Trained models from a file alone: our own weights, and the published ones of three code bases.

Sizes, strides, cameras and identities are read from the file. Nothing in a file is executed.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base.errors import UserError
from harness.base.paths import expanded
from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.sources import as_given_now, settings_of
from harness.config.yaml_files import parse
from svll.base.records import usual_first_camera
from svll.config import Config
from svll.data.datasets import trained_on
from svll.data.side_labels import SideLabels, owner
from svll.models.clip import empty_model, image_encoder, model_config
from svll.models.fit import below, fit, need
from svll.models.openai_archive import is_archive
from svll.models.reid import ReIDModel, learned_side_information
from svll.models.trained_model import LoadedModel, StoredText
from svll.models.weights.clip_reid import clip_reid_model
from svll.models.weights.format import FORMAT, VERSION
from svll.models.weights.input_size import Wanted
from svll.models.weights.transreid import transreid_model

WEIGHTS_NAME = "model.safetensors"


def load_model(
    path: str | Path, device: str | torch.device = "cpu", *,
    height: int | None = None, width: int | None = None, stride: int | None = None,
) -> LoadedModel:
    """Load a run's weights (file or run folder) or a `.pth` of CLIP-ReID, SVLL-ReID or TransReID.

    `height`, `width` and `stride` are for a published file from whose number of positions they
    cannot be told. Raises UserError, naming the file, when it cannot be read, wants to execute
    code, is of no known naming, or lacks a tensor or has one of another size.
    """
    file = Path(expanded(str(path)))
    if file.is_dir():
        file = file / WEIGHTS_NAME
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; give a weights file or the folder of a finished run"
        )
    if is_archive(file):
        raise UserError(
            f"{file}: a TorchScript archive, which is CLIP before ReID; it can be trained from, "
            "as model.weights"
        )
    wanted = Wanted(str(file), height, width, stride)
    state, about = _read(file)
    if about.get("format") == FORMAT:
        model = _own(state, *_about(state, about, wanted), wanted.where)
    else:
        model = _published(_unwrapped(state), wanted)
    return model.requires_grad_(False).eval().to(device)


def _published(state: dict[str, Tensor], wanted: Wanted) -> LoadedModel:
    if any(name.startswith("image_encoder.") for name in state):
        return clip_reid_model(state, wanted)
    if any(name.startswith("base.patch_embed.") for name in state):
        return transreid_model(state, wanted)
    seen = ", ".join(list(state)[:3]) or "no tensors"
    raise UserError(
        f"{wanted.where}: named like none of the known models (holds {seen}); expected are weights "
        "of a run, image_encoder.* of CLIP-ReID or SVLL-ReID, or base.* of TransReID"
    )


# --- files ---


def _read(file: Path) -> tuple[Any, dict[str, str]]:
    """Return what a file holds, and the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix != ".safetensors":
            return torch.load(file, weights_only=True, map_location="cpu"), {}
        with safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return state, opened.metadata() or {}
    except pickle.UnpicklingError:
        # torch's own text advises to execute it all the same
        raise UserError(f"{file}: not read: it is no checkpoint, or holds more than tensors, such "
                        "as code to execute") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"{file}: damaged or no weights file ({first[0][:200]})") from None


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict, also inside of `state_dict` or `model`, in fp32."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}
    return {
        str(name).removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in content.items() if isinstance(value, Tensor)
    }


# --- our own ---


def _own(
    state: dict[str, Tensor], config: Config, labels: SideLabels, identities: int, where: str
) -> LoadedModel:
    data, model = config.data, config.model
    visual = empty_model(model_config(model.name)).visual
    encoder = image_encoder(visual, height=data.height, width=data.width, stride=model.stride)
    fit(encoder, below(state, "encoder."), where, prefix="encoder.", assign=True)
    text = None
    if config.stage1.epochs:
        text = StoredText(need(state, "text", where, axes=2))
    side = learned_side_information(
        model, encoder.width, cameras=labels.camera_count, views=labels.view_count
    )
    if side is not None:
        fit(side, below(state, "side."), where, prefix="side.")
    return LoadedModel(
        ReIDModel(encoder, side), text, height=data.height, width=data.width,
        mean=data.mean, std=data.std, side_labels=labels, identities=identities,
    )


def _about(
    state: dict[str, Tensor], about: dict[str, str], wanted: Wanted
) -> tuple[Config, SideLabels, int]:
    """Return what the metadata says: configuration, cameras and views, number of identities."""
    if about.get("version") != VERSION:
        raise UserError(
            f"{wanted.where}: version {about.get('version')} of the format, this program reads "
            f"version {VERSION}"
        )
    where = Path(f"{wanted.where} (its configuration)")
    try:
        settings = settings_of(parse(about["config"], text_fields(Config))[0], {}, where, Config)
        settings = as_given_now(settings, Config)
        identities = int(about["identities"])
        labels = SideLabels.from_json(about["side_labels"]) if "side_labels" in about else None
        cameras = [] if labels else [int(camera) for camera in json.loads(about["cameras"])]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{wanted.where}: its metadata cannot be read ({error})") from None
    config = build(Config, settings)
    size = {"height": config.data.height, "width": config.data.width}
    for key, value in {**size, "stride": config.model.stride}.items():
        asked = getattr(wanted, key)
        if asked not in (None, value):
            raise UserError(f"{wanted.where}: was trained with {key} {value}, not {asked}")
    return config, labels or _older_labels(state, config, cameras), identities


def _older_labels(
    state: dict[str, Tensor], config: Config, cameras: list[int]
) -> SideLabels:
    """Return the labels of a file from before it named datasets: of the first that it trained on.

    cameras: from 0, those of further datasets counted on; they match none of the first one's.
    """
    name = owner(trained_on(config.data)[0])
    first = usual_first_camera(name)
    if first is None:  # cameras of another name than the dataset's: never taken for its own
        name, first = f"{name}, cameras from 0", 0
    rows = len(state.get("side.vectors", ()))
    views = {"view": rows, "camera_view": rows // max(1, len(cameras))}.get(config.model.sie, 1)
    return SideLabels({name: [camera + first for camera in cameras]}, {name: range(views)})
