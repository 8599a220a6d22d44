"""Tries a target's inputs one by one, in this process, and counts how each ended."""

import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from harness.base.errors import UserError
from harness.base.files import write_text
from tests.commands import Ended, called

LIMIT_S = 10.0
"""Longer counts as a hang."""
DEAD_S = 60.0
"""After so long in one call that no signal gets through, the process ends with a traceback."""


@dataclass(frozen=True)
class Target:
    """A reader, and what it is given."""

    name: str
    inputs: SearchStrategy[Any]
    read: Callable[[Any, Path], object]
    """Gives an input to the reader; the folder is empty and deleted afterwards. It returns after
    an answer and raises UserError for a message; any other exception is a traceback. It asserts
    that an answer is right where another one would be a wrong result."""
    examples: int = 50
    """How many inputs the test tries."""


@dataclass
class Counts:
    """How a target's inputs ended. Each kind of fault is kept once, with an input."""

    tried: int = 0
    answers: int = 0
    messages: int = 0
    tracebacks: dict[str, str] = field(default_factory=dict)
    hangs: dict[str, str] = field(default_factory=dict)


class _Hang(BaseException):
    """No handler of the reader's catches it."""


def count(
    target: Target, *, draws: int, examples: int, seconds: float = 1e9, notes: Path | None = None
) -> Counts:
    """Try so many inputs, or as many as there is time for; `draws` is the seed.

    notes: a file that always holds the input being tried, for a process that dies.
    """
    counts, deadline = Counts(), time.monotonic() + seconds

    @seed(draws)
    @settings(max_examples=examples, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(target.inputs)
    def try_each(value: Any) -> None:
        if time.monotonic() > deadline:
            return
        if notes is not None:
            notes.write_text(_shown(value), errors="surrogateescape")
        _try(target, value, counts)

    try_each()
    return counts


def _try(target: Target, value: Any, counts: Counts) -> None:
    counts.tried += 1
    faulthandler.dump_traceback_later(DEAD_S, exit=True, file=sys.__stderr__)
    try:
        with tempfile.TemporaryDirectory() as folder, _limited():
            target.read(value, Path(folder))
        counts.answers += 1
    except UserError as error:
        str(error).encode("utf-8", "surrogateescape")
        counts.messages += 1
    except _Hang as error:
        counts.hangs.setdefault(_place(error), _shown(value))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        counts.tracebacks.setdefault(_place(error), _shown(value))
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _limited() -> Iterator[None]:
    """Raise _Hang in a body that takes longer than LIMIT_S."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _place(error: BaseException) -> str:
    """Return the kind of an exception and where it was raised: the last line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    root = str(Path(__file__).parents[2])
    own = [f for f in frames if f.filename.startswith(root) and ".venv" not in f.filename]
    place = f"{own[-1].filename.removeprefix(root)}:{own[-1].lineno}" if own else "?"
    message = str(error).encode("utf-8", "backslashreplace").decode()[:200]
    return f"{type(error).__name__} at {place}: {message}"


def _shown(value: Any) -> str:
    return repr(value)[:2000]


def answered(ended: Ended) -> str:
    """Return what a command printed; raises UserError for one message and exit 1 or 2. Anything
    else that is no answer fails."""
    said = ended.out + ended.err
    assert "Traceback" not in said, said
    if ended.status == 0:
        return ended.out
    assert ended.status in (1, 2), f"exit status {ended.status}: {said}"
    assert ended.err.strip(), "no message"
    raise UserError(ended.err)


def command(script: str, *words: object) -> str:
    """Call a command in this process; see `answered`."""
    return answered(called(script, *words))


def main(name: str, seconds: str, draws: str, out: str) -> None:
    """Try one target for some seconds, and keep the counts as JSON in the file `out`."""
    from tests.fuzz.targets import TARGETS

    total, started, batch = Counts(), time.monotonic(), 0
    while (left := float(seconds) - (time.monotonic() - started)) > 0:
        counts = count(TARGETS[name], draws=int(draws) + batch, examples=200, seconds=left,
                       notes=Path(f"{out}.input"))
        batch += 1
        for key in ("tried", "answers", "messages"):
            setattr(total, key, getattr(total, key) + getattr(counts, key))
        total.tracebacks = counts.tracebacks | total.tracebacks
        total.hangs = counts.hangs | total.hangs
        write_text(Path(out), json.dumps(asdict(total)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*sys.argv[1:])
