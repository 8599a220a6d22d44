"""A network file system that fails now and then: every few reads of the harness's files raise
ESTALE or return NULs. A process starts with it when it finds SITECUSTOMIZE by PYTHONPATH."""

import errno
import io
import itertools
import os
from pathlib import Path
from typing import Any

EVERY = 4
NAMES = {"status.json", "result.json", "lock.json", "claim.lock", "record.json", "sweep.json"}
SITECUSTOMIZE = "import failing_reads\nfailing_reads.install(setattr)\n"
counts: dict[str, int] = {"ESTALE": 0, "NUL": 0}


def install(setattr: Any) -> None:
    """Replace `open` and `stat`; setattr: as the built-in one, or a monkeypatch's."""
    real_open, real_stat, calls = io.open, os.stat, itertools.count(1)

    def fails(path: Any) -> bool:
        return Path(os.fsdecode(path)).name in NAMES and next(calls) % EVERY == 0

    def stale(path: Any) -> OSError:
        counts["ESTALE"] += 1
        return OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "r" and not isinstance(path, int) and os.path.lexists(path) and fails(path):
            if counts["NUL"] >= counts["ESTALE"]:
                raise stale(path)
            counts["NUL"] += 1
            return io.StringIO("\0" * 40)
        return real_open(path, mode, *args, **options)

    def stat(path: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(path, int) and fails(path):
            raise stale(path)
        return real_stat(path, *args, **options)

    setattr(io, "open", opened)
    setattr(os, "stat", stat)
