"""What a finished step of a run leaves: prompts after stage 1, the model after stage 2."""

import shutil
from pathlib import Path

from torch import Tensor, nn

from harness.config import to_yaml
from harness.errors import UserError
from harness.files import atomic_write
from harness.runs import Run
from svll.config import Config
from svll.models.prompts import PromptLearner
from svll.models.reid import ReIDModel


def save_prompts(run: Run, prompts: PromptLearner, config: Config) -> None:
    """Write the learned tokens [N, M, W]."""
    _save(run.prompts_file, {"tokens": prompts.tokens}, config)


def load_prompts(run: Run, prompts: PromptLearner) -> None:
    """Put the written tokens into `prompts`; raises UserError when they do not fit."""
    _load(run.prompts_file, prompts)


def save_model(run: Run, model: ReIDModel, config: Config) -> None:
    """Write the trained image encoder with its side information, and the config with it."""
    _save(run.weights_file, model.state_dict(), config)


def load_model(run: Run, model: ReIDModel) -> None:
    """Put the written weights into `model`; raises UserError when they do not fit."""
    _load(run.weights_file, model)


def remove_checkpoints(run: Run) -> None:
    """Delete what only a resume needs."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _save(path: Path, state: dict[str, Tensor], config: Config) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        with atomic_write(path) as private:
            save_file(tensors, private, metadata={"config": to_yaml(config)})
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _load(path: Path, module: nn.Module) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be used ({first}); delete it to make it anew") from None
