"""Claims of GPUs and cores: by several processes, and by processes that die."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cluster.claims import Pool, somebody_waits, waiting
from harness.errors import UserError

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
    busy = cores.take("cores (process 1)", trials=4)
    assert busy is not None
    assert POOL.take("second (process 2)") is None
    assert Pool(POOL.gpus, 1, [], 0).free() == 3
    busy.release()
    every = POOL.take("all (process 3)", trials=3)
    assert every is not None
    assert (len(every.gpus), every.trials, cores.free()) == (3, 3, 1)
    every.release()


def test_a_killed_process_gives_back_what_it_had_and_its_child_keeps_it() -> None:
    program = (
        "import subprocess, sys\n"
        "from harness.cluster.claims import Pool\n"
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
    while Path(f"/proc/{child}/fd").exists() and list(Path(f"/proc/{child}/fd").iterdir()):
        pass
    assert pool.free() == 1


def test_every_user_may_open_the_locks_and_nobody_remove_anothers(folder: Path) -> None:
    claim = POOL.take("first (process 1)")
    assert claim is not None
    claim.release()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o666}


def test_those_that_wait_are_known() -> None:
    assert not somebody_waits()
    with waiting(), waiting():
        assert somebody_waits()
    assert not somebody_waits()


def test_a_lock_that_cannot_be_opened_is_told(folder: Path) -> None:
    folder.mkdir()
    (folder / "gpu-GPU-a").symlink_to(folder / "elsewhere")
    with pytest.raises(UserError, match=r"gpu-GPU-a: cannot be opened .*SVLL_CLAIMS=FOLDER"):
        POOL.take("first (process 1)")
