"""The demo's sweep, and its four trials one after the other with nothing shared.

All from nothing: the world is drawn, images are encoded, four configurations trained and tested.
One after the other as the released code would carry them out, and by our own command.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.config.values import to_yaml
from harness.runs.run import Run
from harness.sweeps.reading import read_sweep
from svll.config import RECIPES, Config
from tests.benchmarks.timing import Row, seconds

SWEEP = Path("sweeps/loss_weights.yaml")
ALONE = {
    "as released": ("-m", "tests.benchmarks.released_trial"),
    "by launch/train.py": ("launch/train.py",),
}


def measure() -> Iterator[Row]:
    """Yield a row for each way of doing without a sweep: some half an hour."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = Path(name)
        ours = seconds(lambda: _call(
            folder / "sweep", "launch/slurm.py", "--sweep", SWEEP, "--cluster", "local", "--follow"
        ))
        for number, (way, words) in enumerate(ALONE.items()):
            place = folder / str(number)
            baseline = seconds(lambda: _one_by_one(place, *words))  # noqa: B023
            yield Row(
                f"the demo's sweep, against trials {way}", "s", ours, baseline, None,
                _peak_mb(folder / "sweep"), _peak_mb(place),
                f"best test mAP {_best(folder / 'sweep'):.3f} and {_best(place):.3f}; memory: all "
                "that one trial holds at its peak",
            )


def _one_by_one(folder: Path, *words: str) -> None:
    """Carry out the sweep's trials, each in a folder and a process of its own."""
    for trial in read_sweep(SWEEP, schema=Config, recipes=RECIPES).trials:
        recipe = folder / f"{trial.signature}.yaml"
        recipe.parent.mkdir(exist_ok=True)
        recipe.write_text(to_yaml(trial.config))
        _call(folder / trial.signature, *words, "--recipe", recipe)


def _call(runs: Path, *words: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, words), f"run.runs={runs}", "run.tensorboard=false"],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())}, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _peak_mb(folder: Path) -> float:
    """Return the most memory that one of the trials below a folder tells of."""
    lines = [line for f in folder.rglob("metrics.jsonl") for line in Run(f.parent).metrics()]
    return 1000 * max(line.get("memory_gb", 0.0) for line in lines)


def _best(folder: Path) -> float:
    """Return the highest test mAP of the runs below a folder."""
    return max(float(json.loads(f.read_text())["mAP"]) for f in folder.rglob("result.json"))
