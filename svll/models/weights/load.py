"""Trained models from a file: our own weights, and the published ones of three code bases.

Sizes, strides, cameras and identities are read from the file. Nothing in a file is executed.
"""

import json
from pathlib import Path

import torch
from torch import nn

from harness.base.errors import UserError
from harness.base.paths import SAFETENSORS, expanded, refuse
from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.recipes import read_recipe
from harness.config.sources import as_given_now, settings_of
from harness.config.yaml_files import parse
from harness.runs.run import Run
from svll.base.records import usual_first_camera
from svll.config import RECIPES, Config
from svll.data.datasets import trained_on
from svll.data.side_labels import SideLabels, owner
from svll.models.clip import TINY, TINY_WEIGHTS, empty_model, image_encoder, load_clip, model_config
from svll.models.files.checkpoint import Kind, model_among, read_checkpoint
from svll.models.files.openai_archive import is_archive
from svll.models.files.state_dict import StateDict
from svll.models.reid import ReIDModel, learned_side_information
from svll.models.trained_model import LoadedModel
from svll.models.weights.clip_reid import clip_reid_model
from svll.models.weights.input_size import GivenSize
from svll.models.weights.run_weights import FORMAT, VERSION, read_tensors
from svll.models.weights.transreid import transreid_model

PUBLISHED = Kind(
    ("image_encoder.", "base.patch_embed."),
    "weights of a run, image_encoder.* of CLIP-ReID or SVLL-ReID, or base.* of TransReID",
)


def weights_file(path: str | Path) -> Path:
    """Return the file that `model_from_file` loads, which may not exist."""
    if str(path) == TINY and not Path(path).exists():
        return TINY_WEIGHTS
    file = Path(expanded(str(path)))
    return Run(file).weights_file if file.is_dir() else file


def model_from_file(
    path: str | Path, device: str | torch.device = "cpu", *,
    height: int | None = None, width: int | None = None, stride: int | None = None,
) -> LoadedModel:
    """Load a run's weights (file or run folder), a `.pth` of CLIP-ReID, SVLL-ReID or TransReID, or
    by its name the shipped CLIP before any ReID training.

    `height`, `width` and `stride` are for a published file whose number of positions leaves them
    open. Raises UserError for a device that torch cannot use, and, naming the file, when it is
    damaged, has no model of these kinds or two different ones, or when a tensor is missing, of
    another size or not finite.
    """
    _check_device(device)
    if str(path) == TINY and not Path(path).exists():
        return _shipped().requires_grad_(False).eval().to(device)
    file = weights_file(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a weights file or a finished run's folder")
    if is_archive(file):
        raise UserError(f"{file}: a TorchScript archive, which is CLIP before ReID training; give "
                        "it as model.weights to train from it")
    given = GivenSize(str(file), height, width, stride)
    state, metadata = _read(file)
    if metadata:
        model = _own(state, metadata, given)
    elif state.below("image_encoder.").tensors:
        model = clip_reid_model(state, given)
    else:
        model = transreid_model(state, given)
    return model.requires_grad_(False).eval().to(device)


def _shipped() -> LoadedModel:
    """Return the tiny CLIP as the recipe `synthetic` starts from it."""
    config = build(Config, read_recipe(RECIPES / "synthetic.yaml", Config))
    data, model = config.data, config.model
    clip = load_clip(TINY, "shipped", height=data.height, width=data.width, stride=model.stride)
    return LoadedModel(ReIDModel(clip.image, None), None, height=data.height, width=data.width,
                       mean=data.mean, std=data.std, side_labels=SideLabels({}, {}), identities=0)


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device {str(device)!r}: torch cannot use it here ({reason}); "
                        "give another one, such as cpu") from None


def _read(file: Path) -> tuple[StateDict, dict[str, str]]:
    """Return a file's tensors, and the metadata if it is a weights file of ours."""
    if file.suffix == ".safetensors":
        refuse("weights", file, SAFETENSORS)
        state, metadata = read_tensors(file)
        if metadata.get("format") == FORMAT:
            return StateDict(state, str(file)), metadata
        found = model_among(state, file, PUBLISHED)
    else:
        found = read_checkpoint(file, PUBLISHED)
    floats = {n: t.float() if t.is_floating_point() else t for n, t in found.items()}
    return StateDict(floats, str(file)), {}


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
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
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
