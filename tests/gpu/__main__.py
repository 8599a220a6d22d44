"""Everything that only a real GPU can show, in under 8 minutes: `make gpu [PART=views]`.

Prints a table of what was checked, with pass or fail and why, and one of the benchmarks; all of it
goes to runs/gpu as JSON, with a log of each part. Ends with 1 if a check failed, 2 without a GPU.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.base.files import read_json_lines, write_json
from harness.base.machine import machine_gpus, visible_gpus
from tests.benchmarks.peaks import UNKNOWN_PEAK
from tests.gpu.checks import PARTS, UNUSABLE, Finding

RESULTS = Path("runs/gpu")
ALL = "all"
ALONE_S = 480.0
"""How long a part may take that is run alone, and all but the last together."""
RESULT = {True: "pass", False: "FAIL", None: "not checked"}
Run = Callable[[str, float, Path], list[Finding]]


def main(wanted: str = ALL, run: Run | None = None, results: Path = RESULTS) -> int:
    """Run one part or all of them, print the tables and keep them; returns the exit status.

    run: what runs a part, within so many seconds, logging to a file; by default a process.
    """
    if wanted not in (ALL, *PARTS):
        print(f"no part {wanted!r}; parts: {ALL}, {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if not visible_gpus():
        why = "CUDA_VISIBLE_DEVICES hides all" if machine_gpus() else (
            "nvidia-smi and /dev name none"
        )
        print(f"no GPU here: {why}. Run this on a machine with one; `make test` is for machines "
              "without.", file=sys.stderr)
        return 2
    started, stamp = time.time(), time.strftime("%Y%m%d-%H%M%S")
    file = results / f"{stamp}-{wanted}.json"
    results.mkdir(parents=True, exist_ok=True)
    found: list[Finding] = []
    for part in PARTS if wanted == ALL else (wanted,):
        print(f"{part} ...", file=sys.stderr, flush=True)
        limit_s = PARTS[part].limit_s if wanted == ALL else ALONE_S
        found += (run or in_a_process)(part, limit_s, results / f"{stamp}-{part}.txt")
        write_json(file, as_json(found, time.time() - started))
        if any(one.name == UNUSABLE for one in found):
            print("the other parts were not run", file=sys.stderr)
            break
    Console(width=170).print(table(found))
    if rows := [one for one in found if "ours" in one.numbers]:
        Console(width=170).print(speeds(rows))
    count = Counter(one.passed for one in found)
    print(f"{count[True]} passed, {count[False]} failed, {count[None]} not checked, in "
          f"{time.time() - started:.0f} s; kept: {file}")
    return int(count[False] > 0)


def in_a_process(part: str, limit_s: float, log: Path) -> list[Finding]:
    """Run a part in a separate process, which is ended after so many seconds."""
    lines = log.with_suffix(".jsonl")
    lines.touch()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command(part, lines), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )
        try:
            return watched(process, part, limit_s, log)
        finally:
            with suppress(ProcessLookupError):  # it has ended, and so have all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            lines.unlink()


def command(part: str, lines: Path) -> list[str]:
    """Return the command that runs a part and writes its findings to a file."""
    return [sys.executable, "-m", "tests.gpu.checks", part, str(lines)]


def watched(
    process: subprocess.Popen[bytes], part: str, limit_s: float, log: Path
) -> list[Finding]:
    """Wait for a part's process; returns its findings, and one more if it did not end well."""
    started, why = time.perf_counter(), ""
    try:
        if status := process.wait(limit_s):
            ended = f"by {signal.Signals(-status).name}" if status < 0 else f"with {status}"
            last = (log.read_text("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
            why = f"its process ended {ended}: {last}; see {log}"
    except subprocess.TimeoutExpired:
        why = f"stopped after {limit_s:.0f} s; what it had not checked by then is missing"
    found = [Finding(**line) for line in read_json_lines(log.with_suffix(".jsonl"))]
    if why:
        taken = time.perf_counter() - started
        found.append(Finding("the part as a whole", False, why=why, part=part, seconds=taken))
    return found


def as_json(found: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"), "seconds": seconds,
        "passed": not any(one.passed is False for one in found),
        "findings": [asdict(one) for one in found],
    }


def table(found: Sequence[Finding]) -> Table:
    """Return the table of all findings."""
    made = Table("part", "check", "result", "found", "why", "s")
    for one in found:
        made.add_row(
            one.part, one.name, RESULT[one.passed], one.found, one.why, f"{one.seconds:.1f}"
        )
    return made


def speeds(rows: Sequence[Finding]) -> Table:
    """Return the table of the benchmarks."""
    made = Table("row", "ours", "+-", "compared with", "ratio", "floor", "images/s", "MFU",
                 "GPU idle", "waits for images", "MB", "compared with")
    for one in rows:
        made.add_row(one.name, *_speed(one.numbers))
    return made


def _speed(row: dict[str, Any]) -> Iterator[str]:
    def shown(key: str, form: str, end: str = "") -> str:
        return "" if row.get(key) is None else f"{row[key]:{form}}{end}"

    yield f"{row['ours']:.3g} {row['unit']}"
    yield shown("spread", ".0%")
    yield shown("baseline", ".3g")
    yield shown("ratio", ".2f", " x")
    yield shown("floor", ".3g")
    yield shown("images_per_s", ",.0f")
    yield shown("mfu", ".0%") or ("unknown" if UNKNOWN_PEAK in row["note"] else "")
    yield shown("idle", ".0%")
    yield shown("waiting", ".1%")
    yield shown("memory_mb", ",.0f")
    yield shown("baseline_memory_mb", ",.0f")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
