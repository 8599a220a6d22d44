"""Claims of GPUs and cores: by several processes, and by processes that die."""

import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.cluster.local import claims
from harness.cluster.local.claims import Claim, Pool

POOL = Pool(["GPU-a", "GPU-b", "MIG-GPU-c/1/0"], 1, [0, 1, 2, 3], 1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SVLL_CLAIMS", str(tmp_path / "claims"))
    return tmp_path / "claims"


def test_no_gpu_or_core_is_given_twice_whatever_the_sizes_of_shares() -> None:
    two = Pool(POOL.gpus, 2, POOL.cores, 3)
    first = POOL.take("first (process 1)")
    assert first is not None
    second = two.take("second (process 2)")
    assert second is not None
    assert (first.gpus, second.gpus) == (("GPU-a",), ("GPU-b", "MIG-GPU-c/1/0"))
    assert (POOL.free(), POOL.take("third (process 3)")) == (0, None)
    assert POOL.users() == ["first (process 1)", "second (process 2)"]
    first.release()
    assert (two.free(), POOL.free(), POOL.users()) == (0, 1, [])
    second.release()
    assert (two.free(), POOL.free()) == (1, 3)


def test_a_share_is_claimed_whole_or_not_at_all() -> None:
    cores = Pool([], 0, [0, 1, 2, 3], 1)
    busy = cores.take("cores (process 1)", most=4)
    assert busy is not None
    assert POOL.take("second (process 2)") is None
    assert Pool(POOL.gpus, 1, [], 0).free() == 3
    busy.release()
    every = POOL.take("all (process 3)", most=3)
    assert every is not None
    assert (len(every.gpus), every.trials, cores.free()) == (3, 3, 1)
    every.release()


def test_a_killed_process_gives_back_what_it_had_and_its_child_keeps_it() -> None:
    program = (
        "import subprocess, sys\n"
        "from harness.cluster.local.claims import Pool\n"
        "claim = Pool(['GPU-a'], 1, [], 0).take('other (process 1)')\n"
        "child = subprocess.Popen(['sleep', '600'], pass_fds=claim.locks)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    pool = Pool(["GPU-a"], 1, [], 0)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert pool.users() == ["other (process 1)"]
        process.kill()
    assert pool.free() == 0
    os.kill(child, 9)
    until(lambda: pool.free() == 1)


def test_every_user_may_open_the_locks_and_none_is_removed_while_in_use(folder: Path) -> None:
    claim = POOL.take("first (process 1)")
    assert claim is not None
    opened = os.open(folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):  # so that systemd removes no old file from it
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    claim.release()
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(opened)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o666}


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (Pool(["GPU-a", "GPU-b"], 1, [], 0), Pool(["GPU-a", "GPU-b"], 2, [0], 1)),
        (Pool([], 0, [0, 1], 1), Pool(["GPU-a"], 1, [0, 1], 2)),
    ],
)
def test_a_large_trial_that_waits_gets_its_share_before_small_ones_take_more(
    small: Pool, large: Pool
) -> None:
    first, second = small.take("small (process 1)"), small.take("small (process 2)")
    assert first is not None
    assert second is not None
    got: list[Claim | None] = []
    thread = threading.Thread(
        target=lambda: got.append(large.take("large", is_needed=lambda: True)), daemon=True
    )
    thread.start()
    turn = Path(os.environ["SVLL_CLAIMS"]) / ("turn-gpu" if small.gpus else "turn-core")
    until(lambda: turn.exists() and len(turn.read_text().split()) == 2)
    first.release()
    assert small.take("small (process 3)") is None
    other = Pool(["GPU-c"], 1, [5], 1).take("elsewhere (process 4)")
    assert other is not None
    second.release()
    assert small.take("small (process 3)") is None
    thread.join(timeout=20)
    assert got[0] is not None
    assert (len(got[0].gpus), large.free(), small.free()) == (large.gpus_each, 0, 0)
    got[0].release()
    other.release()
    assert large.free() == 1
    again = small.take("small (process 3)", most=5)
    assert again is not None
    assert again.trials == 2
    again.release()


def test_waiting_ends_when_the_share_is_no_longer_needed_and_gives_all_back() -> None:
    busy = Pool(["GPU-a"], 1, [], 0).take("first (process 1)")
    assert busy is not None
    answers = iter([True, True, False])
    large = Pool(["GPU-a", "GPU-b"], 2, [], 0)
    assert large.take("second (process 2)", is_needed=lambda: next(answers)) is None
    assert Pool(["GPU-b"], 1, [], 0).free() == 1
    busy.release()
    assert large.free() == 1


def test_a_lock_file_that_was_removed_while_it_was_opened_is_not_taken_for_the_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, removed = claims._open, []

    def open_late(file: Path) -> int:
        lock = opened(file)
        if file.name == "gpu-GPU-a" and not removed:
            removed.append(file)
            file.unlink()
        return lock

    monkeypatch.setattr(claims, "_open", open_late)
    pool = Pool(["GPU-a"], 1, [], 0)
    claim = pool.take("first (process 1)")
    assert claim is not None
    assert (removed, pool.free(), pool.take("second (process 2)")) == (
        [folder / "gpu-GPU-a"], 0, None
    )
    claim.release()


def test_the_folder_of_claims_must_be_the_same_for_all_wherever_they_start(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVLL_CLAIMS", "claims")
    with pytest.raises(UserError, match=r"SVLL_CLAIMS=claims: write an absolute path"):
        POOL.free()
    monkeypatch.setenv("SVLL_CLAIMS", "")
    assert claims._folder() == Path("/tmp/svll-claims")


def test_a_lock_that_cannot_be_opened_is_an_error(folder: Path) -> None:
    folder.mkdir()
    (folder / "gpu-GPU-a").symlink_to(folder / "elsewhere")
    with pytest.raises(UserError, match=r"gpu-GPU-a: cannot be opened .*SVLL_CLAIMS=FOLDER"):
        POOL.take("first (process 1)")


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.02)
