"""What a search has decided about a run: which epochs it judged, whether it ended the run early."""

from pathlib import Path
from typing import Any

from harness.base.files import read_json, write_json
from harness.base.locks import lock_holder
from harness.runs.run import Run, epoch_lines


def judged_file(run: Run) -> Path:
    """Where the search notes which epochs of a run it has judged."""
    return run.folder / "judged.json"


def judged(run: Run) -> set[tuple[Any, Any]]:
    """Return the (stage, epoch) that the search has judged; an epoch may be logged, and not yet."""
    try:
        return {(stage, epoch) for stage, epoch in read_json(judged_file(run))["epochs"]}
    except FileNotFoundError:
        return set()


def note_judged(run: Run, stage: Any, epoch: Any) -> None:
    """Note that the search has decided on an epoch; after what it decided is on disk."""
    before = judged(run)
    if (stage, epoch) not in before:
        write_json(judged_file(run), {"epochs": sorted([*before, (stage, epoch)], key=str)})


def early_end_file(run: Run) -> Path:
    """Where the search says that, and at which epoch, it ends the run early."""
    return run.folder / "early_end.json"


def end_early(run: Run, *, by: str, epoch: int) -> None:
    """Let the run be marked as ended early once it stops; called before it is told to."""
    write_json(early_end_file(run), {"by": by, "epoch": epoch})


def end_paused(run: Run, *, by: str, epoch: int) -> None:
    """Have a run that is paused, or about to be, marked as ended early.

    One that still saves is marked by its own process, which looks when it has let go of its lock:
    the status that it sets before would replace ours.
    """
    end_early(run, by=by, epoch=epoch)
    if lock_holder(run.lock_file) is None:
        mark_ended_early(run)


def mark_ended_early(run: Run) -> None:
    """Give a stopped run the status of one that the search ended, if the search did."""
    try:
        why = read_json(early_end_file(run))
    except FileNotFoundError:
        return
    facts = {key: v for key, v in run.status().items() if key not in ("state", "time", "reason")}
    reason = f"stopped early by {why['by']} at epoch {why['epoch']}"
    run.set_status("stopped", **{**facts, "reason": reason, "pruned": True})
    early_end_file(run).unlink(missing_ok=True)


def was_being_ended(run: Run) -> bool:
    """Whether a search had decided to end a run that has not been marked so, nor has gone on."""
    try:
        why = read_json(early_end_file(run))
    except FileNotFoundError:
        return False
    if run.is_complete() or was_ended_early(run) or run.status()["state"] == "failed":
        return False
    lines = epoch_lines(run)
    return bool(lines) and bool(lines[-1]["epoch"] == why["epoch"])


def was_ended_early(run: Run) -> bool:
    """Whether a search ended the run, and nobody has taken it up since."""
    status = run.status()
    return status["state"] == "stopped" and bool(status.get("pruned"))
