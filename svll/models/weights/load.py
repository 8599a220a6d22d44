"""Trained models from a file: our own weights, and the published ones of three code bases.

Sizes, strides, cameras and identities are read from the file. Nothing in a file is executed.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.base.paths import SAFETENSORS, expanded, refuse
from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.sources import as_given_now, settings_of
from harness.config.yaml_files import parse
from harness.runs.run import Run
from svll.base.records import usual_first_camera
from svll.config import Config
from svll.data.datasets import trained_on
from svll.data.side_labels import SideLabels, owner
from svll.models.clip import empty_model, image_encoder, model_config
from svll.models.openai_archive import is_archive
from svll.models.reid import ReIDModel, learned_side_information
from svll.models.state_dict import StateDict
from svll.models.trained_model import LoadedModel
from svll.models.weights.clip_reid import clip_reid_model
from svll.models.weights.input_size import GivenSize
from svll.models.weights.run_weights import FORMAT, VERSION
from svll.models.weights.transreid import transreid_model


def model_from_file(
    path: str | Path, device: str | torch.device = "cpu", *,
    height: int | None = None, width: int | None = None, stride: int | None = None,
) -> LoadedModel:
    """Load a run's weights (file or run folder) or a `.pth` of CLIP-ReID, SVLL-ReID or TransReID.

    `height`, `width` and `stride` are for a published file whose number of positions leaves them
    open. Raises UserError, naming the file, when it cannot be read, would execute code, has unknown
    tensor names, or lacks a tensor or has one of another size.
    """
    file = Path(expanded(str(path)))
    if file.is_dir():
        file = Run(file).weights_file
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a weights file or a finished run's folder")
    if is_archive(file):
        raise UserError(f"{file}: a TorchScript archive, which is CLIP before ReID training; give "
                        "it as model.weights to train from it")
    given = GivenSize(str(file), height, width, stride)
    content, metadata = _read(file)
    if metadata.get("format") == FORMAT:
        model = _own(StateDict(content, given.where), metadata, given)
    else:
        model = _published(StateDict(_unwrapped(content), given.where), given)
    return model.requires_grad_(False).eval().to(device)


def _published(state: StateDict, given: GivenSize) -> LoadedModel:
    if state.below("image_encoder.").tensors:
        return clip_reid_model(state, given)
    if state.below("base.patch_embed.").tensors:
        return transreid_model(state, given)
    seen = ", ".join(list(state.tensors)[:3]) or "no tensors"
    raise UserError(f"{state.where}: unknown tensor names (holds {seen}); expected are weights of "
                    "a run, image_encoder.* of CLIP-ReID or SVLL-ReID, or base.* of TransReID")


def _read(file: Path) -> tuple[Any, dict[str, str]]:
    """Return a file's content, and the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if file.suffix == ".safetensors":
        refuse("weights", file, SAFETENSORS)
    try:
        if file.suffix != ".safetensors":
            return torch.load(file, weights_only=True, map_location="cpu"), {}
        with safe_open(file, framework="pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return state, opened.metadata() or {}
    except pickle.UnpicklingError:
        # torch's message recommends running the file's code
        raise UserError(
            f"{file}: not read: not a checkpoint, or it holds more than tensors, such as code"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, SafetensorError) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(f"{file}: damaged, or not a weights file ({first[0][:200]})") from None


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Return a state dict's tensors in fp32; it may be wrapped in `state_dict` or `model`."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}
    return {
        str(name).removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in content.items() if isinstance(value, Tensor)
    }


def _own(state: StateDict, metadata: dict[str, str], given: GivenSize) -> LoadedModel:
    config, labels, identities = _parsed(state, metadata, given)
    data, model = config.data, config.model
    visual = empty_model(model_config(model.name)).visual
    encoder = image_encoder(visual, height=data.height, width=data.width, stride=model.stride)
    state.below("encoder.").load_into(encoder, assign=True)
    text = None
    if config.stage1.epochs:
        text = nn.Embedding.from_pretrained(state.get("text", axes=2))
    side = learned_side_information(model, encoder.width, cameras=labels.camera_count,
                                    views=labels.view_count)
    if side is not None:
        state.below("side.").load_into(side)
    return LoadedModel(ReIDModel(encoder, side), text, height=data.height, width=data.width,
                       mean=data.mean, std=data.std, side_labels=labels, identities=identities)


def _parsed(
    state: StateDict, metadata: dict[str, str], given: GivenSize
) -> tuple[Config, SideLabels, int]:
    """Return the metadata's configuration, cameras and views, and number of identities."""
    if metadata.get("version") != VERSION:
        raise UserError(f"{state.where}: format version {metadata.get('version')}, this program "
                        f"reads version {VERSION}")
    where = Path(f"{state.where} (its configuration)")
    try:
        settings = settings_of(parse(metadata["config"], text_fields(Config))[0], {}, where, Config)
        settings = as_given_now(settings, Config)
        identities = int(metadata["identities"])
        stored = metadata.get("side_labels")
        labels = None if stored is None else SideLabels.from_json(stored)
        cameras = [] if labels else [int(camera) for camera in json.loads(metadata["cameras"])]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{state.where}: its metadata cannot be read ({error})") from None
    config = build(Config, settings)
    size = {"height": config.data.height, "width": config.data.width}
    for key, value in {**size, "stride": config.model.stride}.items():
        asked = getattr(given, key)
        if asked not in (None, value):
            raise UserError(f"{state.where}: was trained with {key} {value}, not {asked}")
    return config, labels or _older_labels(state, config, cameras), identities


def _older_labels(state: StateDict, config: Config, cameras: list[int]) -> SideLabels:
    """Return the labels of a file that does not name datasets: of the first training set.

    cameras: from 0, those of further datasets follow; they match none of the first one's.
    """
    name = owner(trained_on(config.data)[0])
    first = usual_first_camera(name)
    if first is None:  # another name than the dataset's, so that no label matches
        name, first = f"{name}, cameras from 0", 0
    rows = len(state.tensors.get("side.vectors", ()))
    views = {"view": rows, "camera_view": rows // max(1, len(cameras))}.get(config.model.sie, 1)
    return SideLabels({name: [camera + first for camera in cameras]}, {name: range(views)})
