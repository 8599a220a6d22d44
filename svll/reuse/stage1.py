"""Stage 1, trained once for all runs whose stage 1 is the same: those of a sweep over stage 2.

    <cache>/prompts/<key>/  checkpoint/ metrics.jsonl about.json

What is kept is how a run stands when stage 1 is over. A run that has not begun takes it in place of
training, log included, and goes on as it would have had it trained stage 1 itself: to the last
digit, but for the speed and memory in the log, which are those of the run that did. Other code,
another processor or GPU is another stage 1.
"""

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import link_folder, read_json, write_json, write_text
from harness.config.values import signature
from harness.runs.run import Run
from harness.runs.stopping import Stopped, stop_requested
from harness.runs.takeovers import adopt_checkpoint
from harness.training import checkpoints, ranks
from svll.base.run_files import TAKEN
from svll.config import Config, Stage2

log = logging.getLogger(__name__)

LEFT_S = 3600.0
"""After how long a folder that is half made is nobody's any more."""
Record = Callable[[dict[str, Any]], None]
"""Gets the lines of the metric log, one by one; may ask for a stop."""


def prompts_key(config: Config, *known: object) -> str:
    """Return the name of a stage 1: 16 hex digits over all that can change it or its log.

    That is all but stage 2 and its image head, and what is `known` of data and weights; also what
    changes no more than rounding, because runs are to end alike to the last digit.
    """
    without = replace(config, stage2=Stage2(vss_weight=0.0))
    parts = [
        signature(without), config.run.log_every, config.engine.zero,
        config.evaluation.batch, ranks.world_size(), *known,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def keep(run: Run, folder: Path, *, epochs: int) -> None:
    """Keep how a run stands after the last epoch of stage 1, unless another's is kept already.

    Called on every rank. That it cannot be written is told, and nothing is kept.
    """
    with ranks.leader_first() as acts:
        source = run.checkpoints / f"stage1-{epochs + 1:04d}-000000"
        if not acts or folder.exists() or not source.exists():
            return
        private = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by runs that were killed in this
            if time.time() - left.stat().st_mtime > LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
        try:
            link_folder(source, private / "checkpoint")
            lines = run.metrics()[: read_json(source / "state.json")["progress"]["metric_lines"]]
            write_text(
                private / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
            )
            write_json(private / "about.json", {"of": run.signature, "epochs": epochs})
            private.rename(folder)
        except OSError as error:
            if not folder.exists():  # else another run was first
                log.warning("%s: stage 1 is not kept for other runs: %s", folder, error.strerror)
            shutil.rmtree(private, ignore_errors=True)


def take(run: Run, folder: Path, record: Record) -> None:
    """Let a run that has not begun go on from the end of the stage 1 that is kept, if one is.

    Called on every rank. Raises Stopped, on all of them, when `record` or a signal asked for a
    stop; the next attempt begins again.
    """
    stopped = False
    with ranks.leader_first() as acts:
        if acts:
            stopped = not _take(run, folder, record)
    if ranks.any_rank(stopped):
        raise Stopped("on request in stage1, while taking over that of another run")


def _take(run: Run, folder: Path, record: Record) -> bool:
    """Take it over; returns False when a stop was asked for before it was done."""
    mark = run.folder / TAKEN
    if any(run.checkpoints.glob("[!.]*")) or (run.metrics() and not mark.exists()):
        return True  # it has trained some of it
    run.keep_metrics(0)  # of an attempt that was stopped in the midst of this
    mark.unlink(missing_ok=True)
    own = run.folder / "incoming.stage1"  # ours, whatever becomes of the one that is kept
    kept = _fetched(folder, own)
    if kept is None:
        return True
    about, lines = kept
    write_json(mark, about)
    log.info("stage1 is that of run %s: taken over instead of trained again", about["of"])
    for line in lines:
        record(line)
        if stop_requested():
            return False
    adopt_checkpoint(own / "checkpoint", run)
    shutil.rmtree(own, ignore_errors=True)
    return True


def _fetched(folder: Path, own: Path) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Link a stage 1 that is kept to `own`; returns what is said of it and the lines of its log.

    None when there is none, or it cannot be read, or is damaged; a damaged one is removed.
    """
    if not folder.exists():
        return None
    try:
        link_folder(folder, own)
        about = dict(read_json(own / "about.json"))
        text = (own / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        progress = checkpoints.read_progress(own / "checkpoint", about["of"])
        if len(lines) != progress.metric_lines:
            raise ValueError(f"{len(lines)} lines are there of {progress.metric_lines}")
        return about, lines
    except (ValueError, KeyError, TypeError, UserError) as error:
        log.warning("%s: is damaged, and made anew: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        log.warning("%s: cannot be read, stage 1 is trained: %s", folder, error)
    shutil.rmtree(own, ignore_errors=True)
    return None
