"""Our weights files: the results of a run's stages, prompts after stage 1, the model after stage 2.

A model's file has its tensors, with its configuration and labels as metadata. A checksum over all
of that is in the metadata too, because a changed number would not be noticed otherwise.
"""

import logging
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.base.errors import Hindered, UserError
from harness.base.files import atomic_write
from harness.config.values import to_yaml
from harness.runs.run import Run
from harness.training import checkpoints
from svll.base.run_files import prompts_file
from svll.config import Config
from svll.data.side_labels import SideLabels
from svll.models.files.checkpoint import damaged
from svll.models.files.pickled import FAULTS
from svll.models.files.state_dict import StateDict
from svll.models.prompts import PromptLearner
from svll.models.reid import ReIDModel

log = logging.getLogger(__name__)
FORMAT, VERSION = "svll-weights", "1"
CHECKSUM = "checksum"
"""The metadata's key; files of earlier versions have none."""
ABOUT = {"format", "version", "config", "side_labels", "cameras", "identities", CHECKSUM}
"""Keys that our files have had; there are others in one whose header is damaged."""
_AGAIN = "; put it back as it was, or delete the run folder to start afresh"


def save_prompts(run: Run, prompts: PromptLearner, config: Config) -> None:
    """Write the learned tokens [N, M, W]."""
    save_tensors(prompts_file(run), {"tokens": prompts.tokens}, {"config": to_yaml(config)})


def load_prompts(run: Run, prompts: PromptLearner) -> None:
    """Load the saved tokens into `prompts`; raises UserError when they do not fit."""
    state = _read(prompts_file(run))
    found, expected = len(state.get("tokens", axes=3)), len(prompts.tokens)
    if found != expected:
        raise UserError(f"{state.where}: prompts of {found} identities, the training part has "
                        f"{expected}{_AGAIN}")
    state.load_into(prompts)


def save_models(run: Run, model: ReIDModel, config: Config, **about: Any) -> None:
    """Write the trained model, and that of the best epoch if another; about: see `save_model`."""
    last = model.state_dict()
    best = checkpoints.best_weights(run.checkpoints, signature=run.signature)
    newest = checkpoints.latest(run.checkpoints, signature=run.signature)
    if best is not None and newest is not None and best[0] != newest[0]:
        _, score, kept = best
        state = {name: kept.get(f"model.{name}", value) for name, value in last.items()}
        save_model(run.best_file, state, config, **about)
        log.info("best validation mAP %.4f: %s", score, run.best_file)
    save_model(run.weights_file, last, config, **about)


def load_run_weights(run: Run, model: ReIDModel) -> None:
    """Load the run's saved weights into `model`; raises UserError when they do not fit."""
    state = _read(run.weights_file)
    tensors = {name: value for name, value in state.tensors.items() if name != "text"}
    replace(state, tensors=tensors).load_into(model)


def save_model(
    path: Path, state: dict[str, Tensor], config: Config, *, text: Tensor | None,
    side_labels: SideLabels, identities: int,
) -> None:
    """Write a trained ReIDModel's `state` with everything needed to use it.

    text [N, D]: text features of N `identities`; None without prompts. Configuration and the
    cameras and views that have vectors of side information are metadata.
    """
    about = {
        "format": FORMAT, "version": VERSION, "config": to_yaml(config),
        "side_labels": side_labels.to_json(), "identities": str(identities),
    }
    save_tensors(path, state | ({} if text is None else {"text": text}), about)


def save_tensors(path: Path, state: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write tensors with metadata; raises Hindered when the disk refuses them."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        with atomic_write(path) as private:
            save_file(tensors, private, metadata=about | {CHECKSUM: checksum(tensors, about)})
    except (OSError, SafetensorError) as error:  # a full disk raises the second
        raise Hindered(f"{path}: cannot be written: {error}") from None


def checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Return a CRC-32 over tensors and metadata; the metadata's own checksum does not count."""
    words = sorted((key, value) for key, value in about.items() if key != CHECKSUM)
    crc = zlib.crc32(repr(words).encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode(), crc)
        if tensor.numel():
            crc = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def read_tensors(path: Path, *, is_ours: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; is_ours: even if it does not say
    so. Raises UserError when it cannot be read, or when it is ours and was changed."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = dict(file.metadata() or {})
        if CHECKSUM in about and about[CHECKSUM] != checksum(tensors, about):
            raise ValueError("it does not match its checksum; copy it again, or remove the "
                             "checksum from its metadata if it was changed on purpose")
        is_ours = is_ours or about.get("format") == FORMAT
        if is_ours and (unknown := sorted(about.keys() - ABOUT)):
            raise ValueError(f"unknown metadata {unknown[0][:50]}")
    except (*FAULTS, SafetensorError) as error:
        raise damaged(path, error) from None
    return tensors, about


def _read(path: Path) -> StateDict:
    try:
        return StateDict(read_tensors(path, is_ours=True)[0], str(path), hint=_AGAIN)
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: cannot be used ({reason}){_AGAIN}") from None
