"""Our weights files: the results of a run's stages, prompts after stage 1, the model after stage 2.

A model's file has its tensors, with its configuration and labels as metadata.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.base.errors import Hindered, UserError
from harness.base.files import atomic_write
from harness.config.values import to_yaml
from harness.runs.run import Run
from harness.training import checkpoints
from svll.base.run_files import prompts_file
from svll.config import Config
from svll.data.side_labels import SideLabels
from svll.models.prompts import PromptLearner
from svll.models.reid import ReIDModel
from svll.models.state_dict import StateDict

log = logging.getLogger(__name__)
FORMAT, VERSION = "svll-weights", "1"
_AGAIN = "; put it back as it was, or delete the run folder to start afresh"


def save_prompts(run: Run, prompts: PromptLearner, config: Config) -> None:
    """Write the learned tokens [N, M, W]."""
    save_tensors(prompts_file(run), {"tokens": prompts.tokens}, {"config": to_yaml(config)})


def load_prompts(run: Run, prompts: PromptLearner) -> None:
    """Load the saved tokens into `prompts`; raises UserError when they do not fit."""
    state = _read(prompts_file(run))
    found, expected = len(state.tensors.get("tokens", prompts.tokens)), len(prompts.tokens)
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
            save_file(tensors, private, metadata=about)
    except (OSError, SafetensorError) as error:  # a full disk raises the second
        raise Hindered(f"{path}: cannot be written: {error}") from None


def _read(path: Path) -> StateDict:
    try:
        return StateDict(load_file(path), str(path), hint=_AGAIN)
    except (OSError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be used ({first}){_AGAIN}") from None
