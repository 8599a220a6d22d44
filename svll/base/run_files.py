"""Files in a run's folder that only this experiment has: those of stage 1."""

from pathlib import Path

from harness.base.files import read_json
from harness.runs.run import Run

PROMPTS = "prompts.safetensors"
"""The tokens that stage 1 learned."""
TAKEN = "stage1.json"
"""In a run that took stage 1 from another run: which run, and how many epochs that trained."""


def prompts_file(run: Run) -> Path:
    """Return where the learned prompts are."""
    return run.folder / PROMPTS


def taken_epochs(run: Run) -> int:
    """Return how many epochs in a run's log were trained by the run whose stage 1 it took."""
    try:
        return int(read_json(run.folder / TAKEN)["epochs"])
    except FileNotFoundError:
        return 0
