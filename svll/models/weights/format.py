"""Our weights files: a model's tensors, with its configuration and labels as metadata."""

from pathlib import Path

from torch import Tensor

from harness.base.errors import Hindered
from harness.base.files import atomic_write
from harness.config.values import to_yaml
from svll.config import Config
from svll.data.side_labels import SideLabels

FORMAT, VERSION = "svll-weights", "1"


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
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        with atomic_write(path) as private:
            save_file(tensors, private, metadata=about)
    except (OSError, SafetensorError) as error:  # a full disk raises the second
        raise Hindered(f"{path}: cannot be written: {error}") from None
