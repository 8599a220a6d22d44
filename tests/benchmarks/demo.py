"""The demo's sweep, and its four trials one after the other with nothing shared.

Both from nothing: the world is drawn, images are encoded, four configurations trained and tested.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness.config import to_yaml
from harness.sweeps import read_sweep
from svll.config import RECIPES, Config
from tests.benchmarks.timing import Row, seconds

SWEEP = Path("sweeps/loss_weights.yaml")
TOLD = "run.tensorboard=false"


def measure() -> Iterator[Row]:
    """Yield the one row: some ten minutes."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = Path(name)
        ours = seconds(partial(
            _call, "launch/slurm.py", "--sweep", SWEEP, "--cluster", "local", "--follow",
            f"run.runs={folder / 'sweep'}", TOLD,
        ))
        baseline = 0.0
        for trial in read_sweep(SWEEP, schema=Config, recipes=RECIPES).trials:
            recipe = folder / f"{trial.signature}.yaml"
            recipe.write_text(to_yaml(trial.config))
            baseline += seconds(partial(
                _call, "launch/train.py", "--recipe", recipe,
                f"run.runs={folder / trial.signature}", TOLD,
            ))
    yield Row("the demo's sweep of 4 trials", "s", ours, baseline, None)


def _call(*words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
