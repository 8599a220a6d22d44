"""Files that stage 1 leaves in a run's folder."""

from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.runs.run import Run

PROMPTS = "prompts.safetensors"
"""The tokens that stage 1 learned."""
TAKEN = "stage1.json"
"""In a run that reused another run's stage 1: that run, and the epochs that it trained."""


def prompts_file(run: Run) -> Path:
    """Return where the learned prompts are."""
    return run.folder / PROMPTS


def taken_epochs(run: Run) -> int:
    """Return how many epochs in a run's log were trained by the run whose stage 1 it reused. Raises
    UserError for a damaged file."""
    file = run.folder / TAKEN
    try:
        return int(read_json(file)["epochs"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read: {error}; put a copy back") from None
