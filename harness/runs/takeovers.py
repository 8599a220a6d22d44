"""Takeovers: runs that continue from another run's state, in population based training.

    <run>/exports/<epoch>/   the state after an epoch at which runs are compared: checkpoint, log up
                             to that epoch, score, settings, files of the experiment
    <run>/incoming/          another run's state
    <run>/takeover.json      a planned takeover: from which run and epoch, with which settings
    <run>/changes.json       the takeovers of the run so far

The scheduler plans a takeover. It is carried out on the node of the run once the run's process has
ended, and again after a kill halfway. The run then has the other run's weights and metric log.
"""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import (
    link_folder,
    read_json,
    rename,
    sync,
    sync_all,
    write_json,
    write_json_lines,
    write_text,
)
from harness.base.mappings import is_number
from harness.config.sources import Setting
from harness.runs.run import Run

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""How long to wait for the checkpoint of an epoch."""
POLL_S = 0.1
OWN_FILES = ("checkpoint", "metrics.jsonl", "about.json")
"""The harness's parts of an exported state; all other files there are the experiment's."""


def export(
    run: Run, *, stage: str, epoch: int, score: float, carried_files: Sequence[str] = (),
    patience_s: float = PATIENCE_S,
) -> None:
    """Export the state at the end of an epoch, for other runs.

    carried_files: names of further files in the run's folder that are exported too. Waits for the
    checkpoint; if it does not appear, only a warning is logged.
    """
    source = run.checkpoints / f"{stage}-{epoch + 1:04d}-000000"
    deadline = time.monotonic() + patience_s
    while not (source / "state.json").exists():
        if time.monotonic() > deadline:
            log.warning("%s: not found; other runs cannot continue from it", source)
            return
        time.sleep(POLL_S)
    private = run.exports / f".{epoch}.{uuid.uuid4().hex}.tmp"
    link_folder(source, private / "checkpoint")
    lines = run.metrics()[: read_json(source / "state.json")["progress"]["metric_lines"]]
    write_json_lines(private / "metrics.jsonl", lines)
    for name in carried_files:
        if (run.folder / name).exists():
            shutil.copyfile(run.folder / name, private / name)
    settings = {setting.key: setting.value for setting in changed_settings(run)}
    write_json(private / "about.json", {"score": score, "settings": settings})
    final = run.exports / str(epoch)
    sync_all(private)
    shutil.rmtree(final, ignore_errors=True)  # the same epoch again, after a resume or a takeover
    rename(private, final)


def exported_score(run: Run, epoch: int) -> float | None:
    """Return a run's score at the end of an epoch, None when its state was not exported."""
    score = _about(run, epoch).get("score")
    return None if score is None else float(score)


def exported_settings(run: Run, epoch: int) -> list[Setting]:
    """Return the settings that replaced those of the run's config.yaml at that epoch."""
    where = str(run.exports / str(epoch))
    return [Setting(key, value, where)
            for key, value in _about(run, epoch).get("settings", {}).items()]


def _about(run: Run, epoch: int) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        return dict(read_json(run.exports / str(epoch) / "about.json"))
    return {}


def forget_exports(run: Run) -> None:
    """Remove the exported states of a run."""
    shutil.rmtree(run.exports, ignore_errors=True)


def plan(run: Run, *, of: Run, epoch: int, settings: Mapping[str, Any]) -> None:
    """Plan that `run` continues from the state that `of` exported after an epoch."""
    link_folder(of.exports / str(epoch), run.incoming)
    takeover = {"of": of.signature, "epoch": epoch, "settings": dict(settings)}
    write_json(run.takeover_file, takeover)


def is_planned(run: Run) -> bool:
    """Return whether a takeover is planned."""
    return run.takeover_file.exists()


def carry_out(run: Run) -> None:
    """Carry out the planned takeover, unless the run is complete; no process may hold the run."""
    incoming = run.incoming
    if not run.is_complete():
        takeover = read_json(run.takeover_file)
        adopt_checkpoint(incoming / "checkpoint", run)
        write_text(run.metrics_file, (incoming / "metrics.jsonl").read_text(encoding="utf-8"))
        for file in incoming.iterdir():
            if file.name not in OWN_FILES:
                os.replace(file, run.folder / file.name)
        run.weights_file.unlink(missing_ok=True)
        before = [one for one in changes(run) if one["epoch"] < takeover["epoch"]]
        write_json(run.changes_file, {"changes": [*before, takeover]})
    run.takeover_file.unlink()
    sync(run.folder)  # it is not planned any more, before its state goes
    shutil.rmtree(incoming, ignore_errors=True)


def adopt_checkpoint(source: Path, run: Run) -> None:
    """Make another run's checkpoint the only one of `run`; no process may hold the run."""
    state = read_json(source / "state.json")
    progress = state["progress"]
    name = f"{progress['stage']}-{progress['epoch']:04d}-{progress['step']:06d}"
    private = run.checkpoints / f".{name}.{uuid.uuid4().hex}.tmp"
    link_folder(source, private)
    (private / "state.json").unlink()  # a link: the other run's file must not change
    write_json(private / "state.json", {**state, "signature": run.signature})
    for old in list(run.checkpoints.iterdir()):
        if old != private:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    rename(private, run.checkpoints / name)
    write_json(run.checkpoints / "latest.json", {"name": name})


def changes(run: Run) -> list[dict[str, Any]]:
    """Return a run's takeovers in order: `of` which run, after which `epoch`, new `settings`.
    Raises UserError for a damaged file."""
    try:
        found = read_json(run.changes_file)["changes"]
        if not all(isinstance(one["settings"], dict) and is_number(one["epoch"]) for one in found):
            raise ValueError("a takeover without settings or epoch")
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.changes_file}: cannot be read: {error}; put a copy back") from None
    return list(found)


def changed_settings(run: Run) -> list[Setting]:
    """Return the settings that replace those of the run's config.yaml now."""
    last = changes(run)[-1:]
    where = str(run.changes_file)
    return [Setting(key, value, where) for one in last for key, value in one["settings"].items()]
