"""Checkpoints in a separate format, with trained state only.

    checkpoints/<stage>-<epoch>-<step>/  weights.safetensors moments.safetensors rng.safetensors
                                         state.json
    checkpoints/latest.json              {"name": ...}, replaced by rename
    checkpoints/best.json                {"name": ..., "score": ...} of the best one

Weights and moments are whole tensors by parameter name, so one rank without ZeRO can resume what
two ranks under ZeRO 2 wrote. DeepSpeed's loader is never called: it unpickles, and it trains from
scratch when it finds nothing. Checksums in state.json, of the other files and of itself, reveal a
damaged checkpoint; the one before it is used instead.
"""

import json
import logging
import shutil
import uuid
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from harness.base.errors import Hindered, UserError
from harness.base.files import make_folder, read_json, rename, sync, write_json
from harness.base.locks import check_held
from harness.training import engine_state, ranks, rng_states

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints kept besides the best: the newest, and the one before in case that is damaged."""
VERSION = 2
"""Of state.json; version 1 had neither score nor a checksum of itself."""
PIECE = 2**22
"""Bytes read at a time for a checksum."""
DAMAGED = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a missing or damaged JSON file raises."""


@dataclass
class Progress:
    """The place in a run at which a checkpoint was written."""

    stage: str
    epoch: int  # being trained, from 1; one past the last when the stage is done
    step: int  # batches of that epoch that were used
    metric_lines: int
    """Lines of the metric log at that point; later lines are removed on resume and logged again."""
    sums: dict[str, float] = field(default_factory=dict)  # of the unfinished epoch
    steps_total: int = 0  # batches that were used since the stage began
    first: dict[str, float] = field(default_factory=dict)  # means of the first epoch, when over


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, in a thread of rank 0 while training continues. A
    context manager: on exit the last checkpoint is written. Every rank must make every call.

    log_file: the metric log, which is made durable before a checkpoint that counts its lines.
    """

    def __init__(self, folder: Path, *, signature: str, log_file: Path | None = None) -> None:
        self._folder, self._signature, self._log_file = folder, signature, log_file
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, engine: Any, progress: Progress, score: float | None = None) -> None:
        """Copy a DeepSpeed engine's trained state, and begin to write it.

        The checkpoint with the highest `score` is never pruned; only rank 0's score is used. Raises
        Hindered when the previous checkpoint could not be written, as on a full disk.
        """
        self.finish()  # first: two checkpoints in memory would be twice as large
        weights, moments, steps = engine_state.collect(engine)
        rows = ranks.gather_rows(rng_states.states()[None])
        tensors = {"weights": weights, "moments": moments,
                   "rng": {str(rank): row.clone() for rank, row in enumerate(rows)}}
        scaler = engine.torch_autocast_z0_gradscaler
        state = {"format": "svll-checkpoint", "version": VERSION, "signature": self._signature,
                 "progress": asdict(progress), "optimizer_steps": steps,
                 "scaler": scaler.state_dict() if scaler is not None else None,
                 "ranks": ranks.world_size(), "score": score}
        if ranks.rank() == 0:
            path = self._folder / f"{progress.stage}-{progress.epoch:04d}-{progress.step:06d}"
            self._pending = self._thread.submit(
                _write, path, tensors, state, score, self._log_file
            )

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk; raises Hindered when it cannot be written."""
        pending, self._pending = self._pending, None
        ranks.on_leader(lambda: pending.result() if pending else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:  # after a failure, ranks may be in different places
                self.finish()
        finally:
            self._thread.shutdown()


def _write(
    path: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], score: float | None,
    log_file: Path | None,
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder, name = path.parent, path.name
    private = folder / f".{name}.{uuid.uuid4().hex}.tmp"
    try:
        make_folder(private)
        for kind, named in tensors.items():
            save_file(named, private / f"{kind}.safetensors")
        state["checksums"] = {file.name: _checksum(file) for file in private.iterdir()}
        state["checksum"] = _state_checksum(state)
        write_json(private / "state.json", state)
        for part in [*private.iterdir(), *([log_file] if log_file and log_file.exists() else [])]:
            sync(part)
        check_held(path)
        if path.exists():  # the same place, reached again after a resume
            path.rename(folder / f".{name}.{uuid.uuid4().hex}.old")
        rename(private, path)
        write_json(folder / "latest.json", {"name": name})
        before = best(folder)
        if score is not None and (before is None or score > before[1]):
            write_json(folder / "best.json", {"name": name, "score": score})
    except (OSError, SafetensorError) as error:  # safetensors raises the second on a full disk
        raise Hindered(f"{folder}: the checkpoint cannot be written: {error}") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)
    top = best(folder)
    old = [other for other in _newest_first(folder, name)[KEPT:] if top is None or other != top[0]]
    for left in [*old, *(p for p in folder.glob(".*") if p.is_dir())]:  # of killed writers too
        shutil.rmtree(left, ignore_errors=True)


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def _state_checksum(state: dict[str, Any]) -> int:
    """Return the CRC-32 of a state.json, apart from its run, which a takeover replaces."""
    counted = {key: value for key, value in state.items() if key not in ("checksum", "signature")}
    as_read = json.loads(json.dumps(counted))
    return zlib.crc32(json.dumps(as_read, sort_keys=True).encode())


def latest(
    folder: Path, *, signature: str, lines: int | None = None
) -> tuple[Path, Progress] | None:
    """Return the newest checkpoint and its place in the run, None when there is none to go on from.

    lines: how many the metric log has. Damaged checkpoints, and those that count more lines, are
    skipped with a warning. Raises UserError when all are damaged, or when another run wrote one: a
    resume never starts over silently.
    """
    try:
        pointed = str(read_json(folder / "latest.json")["name"])
    except DAMAGED:
        pointed = ""
    faults, is_readable = [], False
    for path in _newest_first(folder, pointed):
        try:
            progress = read_progress(path, signature)
        except DAMAGED as error:
            faults.append(f"{path}: cannot be read: {error!r}")
            continue
        is_readable = True
        if lines is not None and progress.metric_lines > lines:
            faults.append(f"{path}: not used, because the metric log has lost lines: it was written"
                          f" after {progress.metric_lines}, there are {lines}")
            continue
        for fault in faults:
            log.warning("%s; resuming from %s", fault, path.name)
        return path, progress
    if faults and not is_readable:
        listed = "\n".join(faults)
        raise UserError(f"{listed}\ndelete the folder {folder} to start over")
    for fault in faults:
        log.warning("%s; the stage starts over", fault)
    return None


def exist(folder: Path) -> bool:
    """Return whether a folder has checkpoints, damaged or not."""
    return bool(_newest_first(folder, ""))


def remove_newer(path: Path) -> None:
    """Remove the checkpoints that were written after `path`, from which a resume starts. They
    cannot be used, and would count as newer than the checkpoints that are written next."""
    for other in _newest_first(path.parent, path.name)[1:]:
        if other.stat().st_mtime_ns > path.stat().st_mtime_ns:
            log.warning("%s is removed: its steps are trained again", other)
            shutil.rmtree(other, ignore_errors=True)


def best_weights(folder: Path, *, signature: str) -> tuple[Path, float, dict[str, Tensor]] | None:
    """Return the checkpoint with the highest score, that score and its weights. None when no
    checkpoint has a score, or when the best one is damaged, which is logged."""
    scored = best(folder)
    if scored is None:
        return None
    try:
        read_progress(scored[0], signature)
        return *scored, read_tensors(scored[0] / "weights.safetensors")
    except (*DAMAGED, UserError) as error:
        log.warning("%s: the best checkpoint is ignored, it cannot be read: %s", scored[0], error)
        return None


def best(folder: Path) -> tuple[Path, float] | None:
    """Return the checkpoint with the highest score, and the score; None when none has a score.

    If best.json is damaged, the scores in the checkpoints count.
    """
    try:
        pointer = read_json(folder / "best.json")
        path, score = folder / str(pointer["name"]), float(pointer["score"])
    except FileNotFoundError:
        return None
    except DAMAGED as error:
        fault = repr(error)
    else:
        if path in _newest_first(folder, "") and _has_score(path, score):
            return path, score
        fault = f"{path.name} has not the score {score}"
    log.warning("%s: cannot be used: %s", folder / "best.json", fault)
    found: tuple[Path, float] | None = None
    for path in reversed(_newest_first(folder, "")):  # of equal ones the first is the best
        with suppress(*DAMAGED):  # TypeError for None, a checkpoint without a score
            score = float(_read_state(path)["score"])
            if found is None or score > found[1]:
                found = path, score
    return found


def _has_score(path: Path, score: float) -> bool:
    """Return whether a checkpoint says that it has this score, or does not say."""
    try:
        return bool(_read_state(path).get("score", score) == score)
    except DAMAGED:
        return True


def _newest_first(folder: Path, first: str) -> list[Path]:
    """Return the checkpoints in a folder: the one named `first`, then the newest first."""
    complete = [p for p in folder.glob("[!.]*") if p.is_dir()]
    return sorted(complete, key=lambda p: (p.name == first, p.stat().st_mtime_ns), reverse=True)


def read_progress(path: Path, signature: str) -> Progress:
    """Return a checkpoint's place in the run, after verifying its files. Raises UserError when
    another run wrote it, one of DAMAGED when it is damaged."""
    state = _read_state(path)
    progress = Progress(**state["progress"])
    if state["signature"] != signature:
        raise UserError(f"{path}: written by run {state['signature']}, not by {signature}")
    for name, checksum in state.get("checksums", {}).items():
        if _checksum(path / name) != checksum:
            raise ValueError(f"{name} does not match its checksum")
    return progress


def _read_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state.json; raises one of DAMAGED unless it matches its checksum."""
    state = dict(read_json(path / "state.json"))
    if "checksum" in state:
        if state["checksum"] != _state_checksum(state):
            raise ValueError("state.json does not match its checksum")
    elif state.get("version", 1) != 1:
        raise ValueError("state.json has no checksum")
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name; raises UserError when damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def restore(path: Path, engine: Any) -> None:
    """Load a checkpoint's weights, moments, step counts and scaler into a fresh engine.

    Global random generators are restored too, for as many ranks as wrote the checkpoint. Raises
    UserError when names or shapes differ from those of the engine's module.
    """
    weights = read_tensors(path / "weights.safetensors")
    moments = read_tensors(path / "moments.safetensors")
    state = read_json(path / "state.json")
    parameters = dict(engine_state.trained(engine.module))
    here = parameters | engine_state.buffers(engine.module)
    expected = {n: tuple(t.shape) for n, t in here.items()}
    saved = {n: tuple(t.shape) for n, t in weights.items()}
    if expected != saved:
        different = sorted(n for n in expected | saved if expected.get(n) != saved.get(n))
        raise UserError(f"{path}: does not fit this run: {different[0]} is "
                        f"{saved.get(different[0])} in the checkpoint and "
                        f"{expected.get(different[0])} here ({len(different)} tensors differ)")
    steps = state["optimizer_steps"]
    needed = [f"{n}.{kind}" for n in parameters if steps.get(n) for kind in engine_state.MOMENTS]
    missing = [name for name in needed if name not in moments]
    if missing:
        raise UserError(f"{path / 'moments.safetensors'}: has no {missing[0]}")
    engine_state.restore(engine, weights, moments, steps)
    if (path / "rng.safetensors").exists():  # earlier versions wrote none
        states = read_tensors(path / "rng.safetensors").get(str(ranks.rank()))
        if states is not None:
            rng_states.set_states(states)
    if state["scaler"] is not None and engine.torch_autocast_z0_gradscaler is not None:
        engine.torch_autocast_z0_gradscaler.load_state_dict(state["scaler"])
