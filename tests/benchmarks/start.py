"""How long a run of a sweep waits for stage 1's image features: the first one, and the others.

The baseline encodes the training set for itself, as every run of the released code does. The demo's
world and model.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from harness.config.values import to_yaml
from harness.runs.run import Run
from svll.config import RECIPES, Config
from svll.experiment import set_up
from svll.inputs import Inputs, load_inputs
from svll.world.world import World, write_world
from tests.benchmarks.timing import Row, apart, row, seconds, times

WORLD = World(train_identities=120, test_identities=4)
REPEATS = 3


def measure() -> Iterator[Row]:
    """Yield the one row."""
    yield apart(_start)


def _start() -> Row:
    with tempfile.TemporaryDirectory(prefix="start-") as name:
        world = write_world(WORLD, Path(name) / "world")
        # each first trial finds a cache of its own, empty
        firsts = [_trial(Path(name) / f"runs-{n}", world, 0.0) for n in range(REPEATS + 1)]
        encoded: list[int] = []
        alone = [_wait(trial, encoded) for trial in firsts][1:]
        images = encoded[-1]
        encoded.clear()
        others = [
            _wait(_trial(Path(name) / "runs-0", world, 0.1 * n), encoded)
            for n in range(1, REPEATS + 1)
        ]
        assert encoded == [0] * REPEATS, f"later trials encoded {encoded} images"
    return row(
        "start of stage 1, second trial on", "s", times(others), times(alone),
        note=f"{images} images encoded by the first, 0 by others",
    )


def _trial(runs: Path, world: Path, weight: float) -> Inputs:
    settings = parse_overrides([
        f"data.root={world}", f"stage1.lss_weight={weight}", f"run.runs={runs}",
    ])
    config = build(Config, [*read_recipe(RECIPES / "synthetic.yaml", Config), *settings])
    run = Run(runs / "bench" / str(weight))
    run.create(to_yaml(config))
    set_up(config)
    return load_inputs(run, config)


def _wait(trial: Inputs, encoded: list[int]) -> float:
    """Return the seconds until a trial has its features; the images that it encoded are counted."""
    counts = [0]
    hook = trial.clip.image.register_forward_hook(
        lambda _, given, __: counts.append(len(given[0]))
    )
    taken = seconds(lambda: trial.frozen().of(trial.splits.train.paths))
    hook.remove()
    encoded.append(sum(counts))
    return taken
