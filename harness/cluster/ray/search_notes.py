"""A search's verdicts on a run: which epochs it has judged, and whether it ended the run early."""

from pathlib import Path
from typing import Any

from harness.base.files import read_json, write_json
from harness.base.locks import lock_holder
from harness.runs.run import Run, epoch_lines

JUDGED = "judged.json"


def judged(run: Run) -> set[tuple[Any, Any]]:
    """Return the (stage, epoch) pairs that the search has judged; others may be logged already."""
    file = run.folder / JUDGED
    return {(stage, n) for stage, n in read_json(file)["epochs"]} if file.exists() else set()


def note_judged(run: Run, stage: Any, epoch: Any) -> None:
    """Record that the search has judged an epoch; called when its decision is on disk."""
    before = judged(run)
    if (stage, epoch) not in before:
        write_json(run.folder / JUDGED, {"epochs": sorted([*before, (stage, epoch)], key=str)})


def early_end_file(run: Run) -> Path:
    """Return the file that holds the search's decision to end the run early, and the epoch."""
    return run.folder / "early_end.json"


def _early_end(run: Run) -> dict[str, Any] | None:
    try:
        return dict(read_json(early_end_file(run)))
    except FileNotFoundError:
        return None


def end_early(run: Run, *, by: str, epoch: int) -> None:
    """Let the run be marked as ended early once it stops; called before the stop is requested."""
    write_json(early_end_file(run), {"by": by, "epoch": epoch})


def end_paused(run: Run, *, by: str, epoch: int) -> None:
    """Mark a run that is paused, or about to be, as ended early.

    A run that is still saving is marked by its own process after it has released its lock, because
    its status would overwrite ours.
    """
    end_early(run, by=by, epoch=epoch)
    if lock_holder(run.lock_file) is None:
        mark_ended_early(run)


def mark_ended_early(run: Run) -> None:
    """Mark a stopped run as ended early, if the search has decided so."""
    if (decision := _early_end(run)) is None:
        return
    facts = {key: v for key, v in run.status().items() if key not in ("state", "time", "reason")}
    reason = f"stopped early by {decision['by']} at epoch {decision['epoch']}"
    run.set_status("stopped", **{**facts, "reason": reason, "pruned": True})
    early_end_file(run).unlink(missing_ok=True)


def was_being_ended(run: Run) -> bool:
    """Return whether a search decided to end a run that is not marked so, and has not continued."""
    decision = _early_end(run)
    if decision is None or run.is_complete() or was_ended_early(run):
        return False
    epochs = [line["epoch"] for line in epoch_lines(run)]
    return run.status()["state"] != "failed" and epochs[-1:] == [decision["epoch"]]


def was_ended_early(run: Run) -> bool:
    """Return whether a search ended the run, and no later launch has resumed it."""
    status = run.status()
    return status["state"] == "stopped" and bool(status.get("pruned"))
