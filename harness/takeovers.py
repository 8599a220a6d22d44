"""A run that goes on from another one's state: how population based training replaces bad ones.

    <run>/exports/<epoch>/   the checkpoint at the end of an epoch at which runs are compared
    <run>/incoming/          another run's: checkpoint, log up to there, prompts
    <run>/takeover.json      that, and with which settings, the run is to go on from `incoming`
    <run>/changes.json       the settings that it has gone on with, and from when

A takeover is planned by whoever compares, and carried out where the run is, once its process has
ended; killed in between, it is carried out again. Afterwards the run's log is that of the weights
it has.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import Setting
from harness.errors import UserError
from harness.files import read_json, write_json, write_text
from harness.runs import Run

PATIENCE_S = 120.0
"""How long an epoch's checkpoint may take to be written."""
POLL_S = 0.1


def export(run: Run, *, stage: str, epoch: int) -> None:
    """Keep the checkpoint at the end of an epoch, for others; it may still be being written.

    Raises UserError when it does not appear.
    """
    source = run.checkpoints / f"{stage}-{epoch + 1:04d}-000000"
    deadline = time.monotonic() + PATIENCE_S
    while not (source / "state.json").exists():
        if time.monotonic() > deadline:
            raise UserError(f"{source}: is not there after {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)
    _link(source, _exports(run) / str(epoch))


def forget_exports(run: Run) -> None:
    """Remove what was kept for others."""
    shutil.rmtree(_exports(run), ignore_errors=True)


def plan(run: Run, *, of: Run, epoch: int, settings: Mapping[str, Any]) -> None:
    """Have `run` go on from the state of `of` after an epoch, with these settings."""
    incoming = run.folder / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    checkpoint = incoming / "checkpoint"
    _link(_exports(of) / str(epoch), checkpoint)
    lines = of.metrics()[: read_json(checkpoint / "state.json")["progress"]["metric_lines"]]
    write_text(incoming / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    if of.prompts_file.exists():
        shutil.copyfile(of.prompts_file, incoming / of.prompts_file.name)
    write_json(run.folder / "takeover.json", {
        "of": of.signature, "epoch": epoch, "settings": dict(settings),
    })


def is_planned(run: Run) -> bool:
    """Whether a run is to go on from another's state."""
    return (run.folder / "takeover.json").exists()


def carry_out(run: Run) -> None:
    """Do what was planned, unless the run has become complete meanwhile; nobody may hold it."""
    planned, incoming = run.folder / "takeover.json", run.folder / "incoming"
    if not run.is_complete():
        what = read_json(planned)
        state = read_json(incoming / "checkpoint" / "state.json")
        progress = state["progress"]
        name = f"{progress['stage']}-{progress['epoch']:04d}-{progress['step']:06d}"
        private = run.checkpoints / f".{name}.{uuid.uuid4().hex}.tmp"
        _link(incoming / "checkpoint", private)
        (private / "state.json").unlink()  # a link: the other run's own file must stay as it is
        write_json(private / "state.json", {**state, "signature": run.signature})
        for old in list(run.checkpoints.iterdir()):
            if old != private:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        private.rename(run.checkpoints / name)
        write_json(run.checkpoints / "latest.json", {"name": name})
        write_text(run.metrics_file, (incoming / "metrics.jsonl").read_text(encoding="utf-8"))
        prompts = incoming / run.prompts_file.name
        if prompts.exists():
            os.replace(prompts, run.prompts_file)
        run.weights_file.unlink(missing_ok=True)
        before = [one for one in changes(run) if one["epoch"] < what["epoch"]]
        write_json(_changes_file(run), {"changes": [*before, what]})
    planned.unlink()
    shutil.rmtree(incoming, ignore_errors=True)


def changes(run: Run) -> list[dict[str, Any]]:
    """Return what a run went on with, in order: `of` which run, after which `epoch`, `settings`."""
    try:
        return list(read_json(_changes_file(run))["changes"])
    except FileNotFoundError:
        return []


def changed_settings(run: Run) -> list[Setting]:
    """Return the settings that a run has now instead of those in its config.yaml."""
    last = changes(run)[-1:]
    where = str(_changes_file(run))
    return [Setting(key, value, where) for one in last for key, value in one["settings"].items()]


def _changes_file(run: Run) -> Path:
    return run.folder / "changes.json"


def _exports(run: Run) -> Path:
    return run.folder / "exports"


def _link(source: Path, target: Path) -> None:
    """Make a folder of the same files, whole or not at all, without copying them."""
    private = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    private.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, private, copy_function=os.link)
    if target.exists():  # the same epoch again, after a resume
        shutil.rmtree(target)
    private.rename(target)
