"""Stage 1, trained once for all runs with the same stage 1, such as a sweep over stage 2.

    <cache>/prompts/<key>/  checkpoint/ metrics.jsonl about.json

A run that has not begun copies the state at the end of stage 1, log included, instead of training.
Its results are the same to the last digit; only speed and memory in the log are those of the other
run. Other code, another processor or another GPU is another stage 1.
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
from harness.base.files import link_folder, read_json, rename, sync, write_json, write_text
from harness.base.reading import from_json
from harness.base.unused import mark_used, remove, unused
from harness.config.signature import signature
from harness.runs.run import Run
from harness.runs.stopping import Stopped, stop_requested
from harness.runs.takeovers import adopt_checkpoint
from harness.training import checkpoints, ranks
from svll.base.run_files import TAKEN
from svll.config import Config, Stage2

log = logging.getLogger(__name__)

LEFT_S = 3600.0
"""Seconds after which a half-made folder is taken for one that a kill left."""
RecordLine = Callable[[dict[str, Any]], None]
"""Receives the lines of the metric log one by one; may ask for a stop."""


def prompts_key(config: Config, *known: object) -> str:
    """Return the name of a stage 1: 16 hex digits over everything that can change it or its log.

    That is all but stage 2 and its image head, and hashes of data and weights in `known`; also
    settings that change only rounding, because results must be equal to the last digit.
    """
    without = replace(config, stage2=Stage2(vss_weight=0.0))
    parts = [
        signature(without), config.run.log_every, config.engine.zero,
        config.evaluation.batch, ranks.world_size(), *known,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def share_stage1(run: Run, folder: Path, *, epochs: int) -> None:
    """Copy the state after stage 1 to `folder` unless that exists; called on every rank."""
    with ranks.leader_first() as acts:
        source = run.checkpoints / f"stage1-{epochs + 1:04d}-000000"
        if not acts or folder.exists() or not source.exists():
            return
        private = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by runs that were killed here
            if time.time() - left.stat().st_mtime > LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
        try:
            link_folder(source, private / "checkpoint")
            count = read_json(source / "state.json")["progress"]["metric_lines"]
            lines = "".join(json.dumps(line) + "\n" for line in run.metrics()[:count])
            write_text(private / "metrics.jsonl", lines)
            write_json(private / "about.json", {"of": run.signature, "epochs": epochs})
            rename(private, folder)
            for old in unused(folder.parent):
                remove(old)
        except OSError as error:
            if not folder.exists():  # else another run was first
                log.warning("%s: stage 1 is not kept for other runs: %s", folder, error.strerror)
            shutil.rmtree(private, ignore_errors=True)


def adopt_stage1(run: Run, folder: Path, record: RecordLine) -> None:
    """Put a run that has not begun at the end of the stage 1 in `folder`, if that exists.

    Called on every rank. Raises Stopped, on all of them, when `record` or a signal asked for a
    stop; the next attempt begins again.
    """
    if not ranks.on_leader(lambda: _adopt(run, folder, record)):
        raise Stopped("on request in stage1, while taking over that of another run")


def _adopt(run: Run, folder: Path, record: RecordLine) -> bool:
    """Return False when a stop was requested before the end."""
    mark = run.folder / TAKEN
    if any(run.checkpoints.glob("[!.]*")) or (run.metrics() and not mark.exists()):
        return True  # it has trained a part of stage 1
    run.keep_metrics(0)  # those of an attempt that was stopped in this function
    mark.unlink(missing_ok=True)
    own = run.folder / "incoming.stage1"  # a private copy: `folder` may be removed meanwhile
    shared = _copied(folder, own)
    if shared is None:
        return True
    about, lines = shared
    write_json(mark, about)
    log.info("stage 1 is taken over from run %s instead of trained again", about["of"])
    for line in lines:
        record(line)
        if stop_requested():
            return False
    sync(run.metrics_file)  # before the checkpoint that counts its lines
    adopt_checkpoint(own / "checkpoint", run)
    shutil.rmtree(own, ignore_errors=True)
    return True


def _copied(folder: Path, own: Path) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Link `folder` to `own`; return about.json and log lines, None when missing or damaged."""
    if not folder.exists():
        return None
    mark_used(folder)
    try:
        link_folder(folder, own)
        about = dict(read_json(own / "about.json"))
        text = (own / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [dict(from_json(line)) for line in text.splitlines()]
        progress = checkpoints.read_progress(own / "checkpoint", about["of"])
        if len(lines) != progress.metric_lines:
            raise ValueError(f"{len(lines)} of {progress.metric_lines} lines")
        return about, lines
    except (ValueError, KeyError, TypeError, UserError) as error:
        log.warning("%s: is damaged, so stage 1 is trained again: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        log.warning("%s: cannot be read, so stage 1 is trained again: %s", folder, error)
    shutil.rmtree(own, ignore_errors=True)
    return None
