"""What a search costs beside the training: per trial and per report, against bare Ray Tune.

Both run the same function, the tests' toy experiment, one trial after the other, on a Ray of this
machine. Bare Tune runs it in its actor; our way in a process of its own, which can be signalled and
started on several nodes. Starting Ray is left out: times are taken from the first trial's start to
the last one's end.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from harness.cluster.launch import launch
from harness.cluster.local.place import living_workers
from harness.cluster.records import read_records
from harness.config.values import to_yaml
from harness.sweeps.reading import Sweep
from tests.benchmarks.timing import Row, seconds

TRIALS = 8
REPORTS = 101
"""Of a long trial; a short one makes one."""
TOYS = Path(__file__).parents[1] / "toy"
WAIT_S = 600.0
BARE = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
import ray
from ray import tune
from pathlib import Path
runs, toys = json.loads(sys.argv[2]), sys.argv[1]
times = []

def train(config):
    sys.path.insert(0, toys)
    import toy_experiment
    from harness.runs.run import Run
    def report(line):
        tune.report({"epoch": line["epoch"], "loss": line["loss"],
                     "validation.mAP": line["validation"]["mAP"]})
    toy_experiment.run(Run(Path(config["run"])), report)

class Clock(tune.Callback):
    def on_trial_start(self, **facts):
        times.append(time.time())
    def on_trial_complete(self, **facts):
        times.append(time.time())

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
tune.Tuner(
    tune.with_resources(train, {"cpu": 1}),
    param_space={"run": tune.grid_search(runs)},
    tune_config=tune.TuneConfig(reuse_actors=True),
    run_config=tune.RunConfig(storage_path=sys.argv[3], verbose=0, callbacks=[Clock()]),
).fit()
print(times[-1] - times[0])
"""
ALONE = """
import sys; sys.path.insert(0, sys.argv[1])
import toy_experiment
from pathlib import Path
from harness.runs.run import Run
toy_experiment.run(Run(Path(sys.argv[2])), lambda line: None)
"""


def measure() -> Iterator[Row]:
    """Yield a row each for a trial and for a report."""
    sys.path.insert(0, str(TOYS))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TOYS), str(Path.cwd())])
    found = {}
    with tempfile.TemporaryDirectory(prefix="search-") as name:
        for epochs in (1, REPORTS):
            folder = Path(name) / str(epochs)
            found[epochs] = [
                _ours(folder / "ours", epochs), _bare(folder / "bare", epochs),
                _alone(folder / "alone", epochs),
            ]
    short = [taken / TRIALS for taken in found[1]]
    long = [(b - a) / TRIALS / (REPORTS - 1) for a, b in zip(*found.values(), strict=True)]
    long[-1] = found[REPORTS][-1] / TRIALS / REPORTS
    yield Row(
        "a trial of one report", "s", *short,
        note="baseline: bare Tune in an actor that has imported everything; floor: the function in "
        "a new Python",
    )
    yield Row(
        "a report", "ms", *(1000 * one for one in long),
        note="floor: an epoch of the function, which logs and saves it, reported to nobody",
    )


def _sweep(folder: Path, epochs: int, **keys: object) -> Sweep:
    import toy_experiment as toy

    search = {"work.quality": {"grid": [n / TRIALS for n in range(TRIALS)]}}
    return toy.make_sweep(folder, search, recipe={"work": {"epochs": epochs}}, **keys)


def _ours(folder: Path, epochs: int) -> float:
    sweep = _sweep(folder, epochs, backend="ray")
    launch(sweep, "local", jobs=1)
    deadline = time.monotonic() + WAIT_S
    while living_workers(sweep.folder) or not sweep.trials[-1].run.is_complete():
        assert time.monotonic() < deadline, f"see {sweep.folder}"
        time.sleep(0.5)
    [record] = read_records(sweep.folder)
    [log] = Path(record.folder).glob("worker-0.log")
    times = [
        datetime.fromisoformat(line[:23].replace(",", "."))
        for line in log.read_text().splitlines() if re.search(r": (starts|over)$", line)
    ]
    return (times[-1] - times[0]).total_seconds()


def _bare(folder: Path, epochs: int) -> float:
    sweep = _sweep(folder, epochs)
    for trial in sweep.trials:
        trial.run.create(to_yaml(trial.config))
    runs = json.dumps([str(trial.run.folder.resolve()) for trial in sweep.trials])
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(TOYS), runs, str(folder / "tune")],
        text=True, capture_output=True, check=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    return float(done.stdout.split()[-1])


def _alone(folder: Path, epochs: int) -> float:
    """The function in a new Python, without reports; of many epochs in this one, for the noise."""
    import toy_experiment as toy

    sweep = _sweep(folder, epochs)
    for trial in sweep.trials:
        trial.run.create(to_yaml(trial.config))
    runs = [trial.run for trial in sweep.trials]
    if epochs > 1:
        return seconds(lambda: [toy.run(run) for run in runs])
    return seconds(lambda: [
        subprocess.run([sys.executable, "-c", ALONE, str(TOYS), str(run.folder)], check=True)
        for run in runs
    ])
