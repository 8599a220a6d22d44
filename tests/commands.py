"""The commands, called as they are typed: in this process, or in one of their own."""

import contextlib
import importlib
import io
import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120


def free_port() -> int:
    """Return a TCP port of this machine that is free now, for what takes only a number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_rank(rank: int, count: int, port: str) -> dict[str, str]:
    """Return the variables with which ranks on this machine find each other."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Run the body as the user `nobody`; skips where this user is not root."""
    if os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    nobody = pwd.getpwnam("nobody").pw_uid
    os.setresuid(nobody, nobody, 0)
    try:
        if not os.access(ROOT / "sweeps", os.X_OK):
            pytest.skip(f"nobody else may read {ROOT}")
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a new folder that all users may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def called(script: str, *words: object) -> Ended:
    """Call a script's main function: the same as a process, without its start."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"launch/{script}.py", *map(str, words)])
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(logging.getLogger(), "handlers", [])
        with (
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            importlib.import_module(f"launch.{script}").main()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def started(script: str, *words: object) -> Ended:
    """Start a script as a process and wait for its end."""
    done = subprocess.run(
        [sys.executable, ROOT / f"launch/{script}.py", *map(str, words)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def called_and_stopped(words: list[object], *, step: int) -> Ended:
    """Call train.py, and send SIGTERM to this process when training has made so many steps."""
    from harness.training import loop

    asked, requested = 0, loop.stop_requested

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        if asked == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return requested()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "stop_requested", stop_requested)
        return called("train", *words)


def started_and_stopped(words: list[object], runs: Path) -> Ended:
    """Start train.py as a process, and send it SIGTERM when it has read its datasets."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "launch/train.py", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if any("training images of" in log.read_text() for log in runs.glob("*/*/log.txt")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    return Ended(process.returncode, out, err)
