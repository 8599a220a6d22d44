"""Rank of a trial in a Ray search: it reports every epoch to Ray's actor and waits for an answer.

    rank 0 -- JSON line --> actor     after every epoch
    actor  -- one byte  --> rank 0    continue

The run waits for the answer, so that a search ends it at the epoch it judged and not some epochs
later. When the pipe of answers closes instead, because the search ends the run or because the actor
or its node is gone, the run saves and stops. The rank is a separate process because only a main
thread can catch signals.
"""

import json
import logging
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from harness.base.caches import keep_caches_here
from harness.base.errors import UserError
from harness.base.locks import job_id
from harness.cluster.rank_processes import EXIT_STATUS, IN_USE_STATUS, drop_own_lock, log_to_stderr
from harness.cluster.ray.search_notes import mark_ended_early
from harness.runs.execute import execute
from harness.runs.run import Run
from harness.runs.stopping import request_stop

log = logging.getLogger(__name__)


class ReportPipes:
    """Reports epochs to the actor and waits for its answers."""

    def __init__(self, report_descriptor: int, answer_descriptor: int) -> None:
        self.reports = (
            os.fdopen(report_descriptor, "w", encoding="utf-8") if report_descriptor >= 0 else None
        )
        self.answer_descriptor = answer_descriptor
        self.received: queue.Queue[bytes] = queue.Queue()
        self.closed = threading.Event()
        # training does not read the pipe between epochs: a thread notices when it closes
        threading.Thread(target=self._read, daemon=True).start()

    def report(self, line: dict[str, Any]) -> None:
        """Report an epoch's metrics; returns on the answer, or after requesting a stop."""
        if not self.closed.is_set():
            try:
                print(json.dumps(line), file=self.reports, flush=True)
                self.received.get()
            except BrokenPipeError:
                self.closed.set()
        if self.closed.is_set():
            request_stop()

    def _read(self) -> None:
        while answer := os.read(self.answer_descriptor, 1):
            self.received.put(answer)
        self.closed.set()
        request_stop()
        self.received.put(b"")


def main(arguments: list[str]) -> int:
    """Execute one run as a rank that reports; returns its exit status."""
    log_to_stderr()
    keep_caches_here()  # also where an external Ray started the actor
    folder, report_descriptor, answer_descriptor = arguments
    pipes = ReportPipes(int(report_descriptor), int(answer_descriptor))
    run = Run(Path(folder))
    try:
        if job_id() is not None and pipes.reports is not None:  # rank 0, which then locks it
            drop_own_lock(run)
        outcome = execute(run, report=pipes.report if pipes.reports is not None else None)
    except UserError as error:
        log.error("%s", error)
        return IN_USE_STATUS
    if outcome == "stopped" and pipes.reports is not None:
        mark_ended_early(run)
    return EXIT_STATUS[outcome]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
