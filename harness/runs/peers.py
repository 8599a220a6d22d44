"""The ranks of one attempt at a run: how they meet, and how each learns that another has failed.

Rank 0 listens on a free port and names it in a file that all ranks can read; the others connect and
stay connected. The kernel closes the connections of a process that dies; those of one that is only
busy or suspended stay. A rank that fails tells rank 0, which writes the status and tells the
others. Threads read the connections and end the process when its main thread does not: it may be in
a collective that waits for the failed rank. Nothing here needs torch, so ranks meet before they
spend seconds to import it.

    .ranks-<attempt>.json    host, port and a token; removed when all ranks have met
"""

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import Hindered, UserError
from harness.runs.connections import LOOPBACK, Connections, Failure
from harness.runs.stopping import Stopped

ATTEMPT = "SVLL_ATTEMPT"
"""Environment variable: a text that only the ranks of one attempt share. Without it they are known
by MASTER_ADDR and MASTER_PORT."""
MEET_LIMIT_S = 1800.0


def own_place() -> tuple[int, int]:
    """Return this process's rank and the number of ranks, from RANK and WORLD_SIZE. Raises
    UserError when they do not fit together."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "1")
    otherwise = ("unset both to run in one process, or start the ranks with torchrun "
                 "--nproc-per-node=N")
    if rank == "" and world != "1":
        raise UserError(f"WORLD_SIZE={world} is set and RANK is not; {otherwise}")
    try:
        own, count = int(rank or "0"), int(world)
    except ValueError:
        own = count = -1
    if not 0 <= own < count:
        raise UserError(f"RANK={rank} does not go with WORLD_SIZE={world}; {otherwise}")
    return own, count


@contextmanager
def together(folder: Path, *, watched: bool = True) -> Iterator[None]:
    """Connect with the other ranks of this attempt while the body runs; `meet` waits for them.

    folder: the same for all ranks, on a file system that they share. An exception of the body is
    sent to the others. watched: end this process when another rank has failed. Does nothing for a
    single rank, or inside another `together`.
    """
    global _own
    rank, world = own_place()
    if world == 1 or _own is not None:
        yield
        return
    _own = peers = Connections(folder / f".ranks-{_attempt()}.json", rank, world, watched)
    try:
        peers.open()
        yield
    except Stopped:  # all ranks agree on it
        raise
    except BaseException as error:
        end_here()
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        tell({"error": message, "lines": message.splitlines(),
              "hindered": isinstance(error, Hindered)}, knows_cause=cause() is None)
        raise
    finally:
        if peers.failures:
            note_failure()
        peers.close()
        _own = None


def meet(limit_s: float = MEET_LIMIT_S) -> None:
    """Wait until all ranks are connected. Raises Stopped after a stop request to any rank, RankLost
    when another rank fails, Hindered after the limit and if TERM came, even before: starters of
    ranks send that when a rank cannot start."""
    if _own is not None:
        _own.meet(limit_s)


def is_joined() -> bool:
    """Return whether this process is connected with other ranks."""
    return _own is not None


def agree(name: str, make: Callable[[], int]) -> int:
    """Return what `make` returns on rank 0, on every rank."""
    assert _own is not None
    return _own.agree(name, make)


def on_loss(record: Callable[[Failure], object]) -> None:
    """Have a thread call this before it ends the process because another rank has failed."""
    if _own is not None:
        _own.record = record


def note_failure() -> None:
    """Note that this rank fails, or another one has: `has_failed`."""
    global _has_failed
    _has_failed = True


def has_failed() -> bool:
    """Return whether a rank has failed, so that none may wait for the others at its end."""
    return _has_failed


def end_at_once() -> None:
    """Have the thread end the process as soon as another rank has failed. For NCCL, from which the
    main thread learns nothing, while a thread of torch may end the process before the status is
    written."""
    if _own is not None:
        _own.grace_s = 0.0


def end_here() -> None:
    """Call when the main thread ends its work: from now on no thread ends the process. Does not
    return if one is about to."""
    if _own is not None:
        _own.claim_end("main")


def cause(wait_s: float = 0.0) -> Failure | None:
    """Return why another rank failed, with that rank's number, or None if none has (yet)."""
    return _own.cause(wait_s) if _own is not None else None


def tell(failure: Failure, *, knows_cause: bool = True) -> None:
    """Tell the other ranks that this one has failed; on rank 0, after its status was written.
    knows_cause: False when this rank only noticed the failure of another one."""
    if _own is not None:
        _own.tell({**failure, "is_cause": knows_cause})


def dead_leader() -> list[Any] | None:
    """Return host and process id of rank 0 if that process died, on rank 1 alone: it ends the run
    in rank 0's place."""
    if _own is None or _own.rank != 1 or not _own.failures.get(0, {}).get("is_death"):
        return None
    return _own.leader


def _attempt() -> str:
    """Return a text that only the ranks of this attempt share, fit for the name of a file."""
    given = os.environ.get(ATTEMPT)
    if given is None:
        try:
            address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        except KeyError as error:
            raise UserError(f"WORLD_SIZE and RANK are set and {error.args[0]} is not; unset them "
                            "to run in one process, or start the ranks with torchrun") from None
        host = f"-{socket.gethostname()}" if address in LOOPBACK else ""
        given = f"{address}{host}-{port}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return re.sub(r"[^\w.-]", "_", given)


_own: Connections | None = None
_has_failed = False


def _forget_in_child() -> None:
    global _own
    if _own is not None:
        _own.forget()
        _own = None


os.register_at_fork(after_in_child=_forget_in_child)
