"""Files that runs share: results that depend only on dataset, weights and image reading.

The first run makes a file, the others wait for it. Its name is a hash of everything that its
content depends on.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.base.files import read_json, write_json
from harness.base.locks import Busy, held_lock
from harness.base.reading import exists
from harness.runs.stopping import check_stop
from harness.training import ranks

log = logging.getLogger(__name__)
POLL_S = 0.5


def shared_json(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a mapping from `path`, made if missing or damaged; `compute` is called on every rank.
    """

    def make() -> None:
        value = compute()
        ranks.on_leader(lambda: write_json(path, value))

    ranks.on_leader(lambda: _remove_damaged(path))
    make_once(path, make)
    return dict(read_json(path))


def _remove_damaged(path: Path) -> None:
    try:
        dict(read_json(path))
    except FileNotFoundError:
        pass
    except (ValueError, TypeError) as error:
        log.warning("%s: is damaged, so it is made again: %s", path, error)
        path.unlink(missing_ok=True)


def make_once(path: Path, make: Callable[[], None]) -> None:
    """Call `make` on every rank unless `path` exists; other runs that need it wait meanwhile."""
    with ExitStack() as stack:
        if ranks.on_leader(lambda: _claim(path, stack)):
            log.info("making %s", path)
            make()


def _claim(path: Path, stack: ExitStack) -> bool:
    """Take the lock of a missing file, waiting for its holder; returns whether to make the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_waiting = False
    while not exists(path):
        try:
            stack.enter_context(held_lock(path.with_name(f"{path.name}.lock")))
            return not exists(path)
        except Busy as holder:
            if not is_waiting:
                log.info("waiting for %s (%s)", path.name, holder.who)
            is_waiting = True
            time.sleep(POLL_S)
            check_stop(f"waiting for {path.name} ({holder.who})")
    return False
