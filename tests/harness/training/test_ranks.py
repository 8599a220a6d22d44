"""Any number of ranks shares work, votes and ends as one rank does."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.base import machine
from harness.base.errors import Hindered, UserError
from harness.base.files import read_json
from harness.cluster.causes import with_next_step
from harness.runs import peers
from harness.runs.run import Run
from harness.training import ranks
from tests.commands import free_port

# --- what runs on the ranks ---


def gradients_of_gathered_sums() -> list[list[float]]:
    """Two gathers whose outputs are added: autograd hands both the very same gradient."""
    a, b = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    total = (ranks.gather_rows(a) + ranks.gather_rows(b)) * torch.arange(12.0).view(4, 3)
    total.sum().backward()
    return [a.grad.flatten().tolist(), b.grad.flatten().tolist()]  # type: ignore[union-attr]


def gathered_labels() -> list[int]:
    return ranks.gather_rows(torch.tensor([10, 11]) + 2 * ranks.rank()).tolist()


def shards(counts: list[int]) -> list[dict[str, list[int]]]:
    return [
        {"own": list(range(n))[ranks.shard(n)], "padded": ranks.padded_shard(n).tolist()}
        for n in counts
    ]


def votes() -> list[bool]:
    own = [ranks.rank() == 0, ranks.rank() == ranks.world_size() - 1, False]
    return [ranks.any_rank(flag) for flag in own]


def led(file: str) -> dict[str, Any]:
    """Write a file on rank 0 only, read it on all; then fail on rank 0 only."""
    with ranks.leader_first() as acts:
        if acts:
            with open(file, "a") as output:
                output.write("once")
    with open(file) as written:
        text = written.read()
    ranks.barrier()
    try:
        with ranks.leader_first() as acts:
            if acts:
                raise ValueError("no disk")
        failure = "nothing was raised"
    except (ValueError, RuntimeError) as error:
        failure = f"{type(error).__name__}: {error}"
    result = ranks.on_leader(lambda: f"computed on rank {ranks.rank()}")
    return {"text": text, "failure": failure, "result": result, "in step": gathered_labels()}


# --- tests ---


def test_a_gradient_that_two_gathers_share_is_summed_once_for_each(two_ranks: Any) -> None:
    # summed over 2 ranks; DeepSpeed divides by 2 later
    expected = [[2.0 * n for n in range(6)], [2.0 * n for n in range(6, 12)]]
    for gradients, own in zip(two_ranks(gradients_of_gathered_sums), expected, strict=True):
        assert gradients == [own, own]


def test_whole_numbers_are_gathered_in_rank_order(two_ranks: Any) -> None:
    assert two_ranks(gathered_labels) == [[10, 11, 12, 13]] * 2


def test_shards_cover_everything_once(one_rank: Any, two_ranks: Any) -> None:
    counts = [0, 1, 2, 3, 7, 8]
    for results in (one_rank(shards, counts=counts), two_ranks(shards, counts=counts)):
        for count, *parts in zip(counts, *results, strict=True):
            assert [row for part in parts for row in part["own"]] == list(range(count))
            assert max(len(p["own"]) for p in parts) - min(len(p["own"]) for p in parts) <= 1


def test_shards_stay_in_order_with_more_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (3, 5):
        monkeypatch.setattr(ranks, "world_size", lambda world=world: world)
        for count in range(1, 12):
            shares, padded = [], []
            for rank in range(world):
                monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
                shares.append(ranks.shard(count))
                padded.append(ranks.padded_shard(count).tolist())
            assert [shares[0].start, shares[-1].stop] == [0, count]
            assert all(a.stop == b.start for a, b in pairwise(shares))
            assert len({len(share) for share in padded}) == 1
            assert [i for share in padded for i in share][:count] == list(range(count))


def test_padded_shards_are_equally_long_and_cut_back_to_everything(two_ranks: Any) -> None:
    counts = [1, 2, 3, 7, 8]
    for count, *parts in zip(counts, *two_ranks(shards, counts=counts), strict=True):
        first, second = (part["padded"] for part in parts)
        assert len(first) == len(second)
        assert [*first, *second][:count] == list(range(count))
        assert set([*first, *second][count:]) <= {count - 1}


@pytest.mark.slow
def test_a_rank_that_hangs_becomes_an_error_of_the_others_within_the_time_out() -> None:
    program = (
        "import os, time\n"
        "from harness.training import ranks\n"
        "ranks.import_deepspeed()\n"  # once for both: it takes seconds
        "first, rank = os.getpid(), 0 if os.fork() else 1\n"
        "os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))\n"
        "ranks.init_ranks(timeout_minutes=0.05)\n"
        "ranks.barrier()\n"
        "while rank == 1 and os.getppid() == first: time.sleep(0.05)\n"
        "if rank == 0: ranks.any_rank(False)\n"
    )
    env = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "see the logs of all ranks" in with_next_step(done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_ranks_can_end_right_after_a_collective() -> None:
    program = (
        "import torch\n"
        "from harness.training import ranks\n"
        "ranks.init_ranks()\n"
        "torch.distributed.all_reduce(torch.zeros(20_000_000))\n"
    )
    env = os.environ | {
        "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }
    processes = [
        subprocess.Popen(  # not forked: then they end in time by themselves
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(4)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 4, outputs


def test_what_a_lone_process_starts_can_be_alone_at_the_same_time() -> None:
    program = (
        "import os, subprocess, sys\n"
        "from harness.training import ranks\n"
        "ranks.init_ranks()\n"
        "ranks.barrier()\n"
        "script = 'import json, os; print(json.dumps(dict(os.environ)))'\n"
        "subprocess.run([sys.executable, '-c', script], check=True)\n"
    )

    def about_ranks(env: Mapping[str, str]) -> dict[str, str]:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return {name: env[name] for name in names if name in env}

    given = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    given |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=given
    )
    assert done.returncode == 0, done.stderr
    # with what it gets the process itself was alone
    assert about_ranks(json.loads(done.stdout)) == about_ranks(given)


def test_a_flag_on_any_rank_is_seen_on_all(one_rank: Any, two_ranks: Any) -> None:
    assert two_ranks(votes) == [[True, True, False]] * 2
    assert one_rank(votes) == [[True, True, False]]


def test_the_leader_acts_alone_and_its_failure_is_raised_on_every_rank(
    two_ranks: Any, tmp_path: Any
) -> None:
    leader, other = two_ranks(led, file=tmp_path / "file")
    assert leader["text"] == other["text"] == "once"
    assert leader["failure"] == "ValueError: no disk"
    assert other["failure"] == "RuntimeError: rank 0 failed: ValueError: no disk"
    assert leader["result"] == other["result"] == "computed on rank 0"
    assert leader["in step"] == other["in step"] == [10, 11, 12, 13]


def test_gathering_without_other_ranks_costs_nothing() -> None:
    rows = torch.ones(2, 2)
    assert ranks.gather_rows(rows) is rows


def test_the_peak_of_memory_is_counted_from_when_it_was_forgotten() -> None:
    numbers, gigabyte = 50_000_000, 0.2
    before = ranks.peak_memory_gb()
    held = torch.ones(numbers, device=ranks.device())
    with_it = ranks.peak_memory_gb()
    assert with_it >= before
    del held
    assert ranks.peak_memory_gb() == pytest.approx(with_it, rel=0.01)
    ranks.forget_peak()
    without = ranks.peak_memory_gb()
    assert without < with_it - 0.9 * gigabyte
    held = torch.ones(numbers, device=ranks.device())
    assert ranks.peak_memory_gb() == pytest.approx(without + gigabyte, rel=0.1)
    del held


def test_a_run_says_which_gpus_it_leaves_idle_and_why(
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpus(0)
    assert ranks.idle_gpus() == ""
    gpus(2)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "driver_cuda", lambda: (12, 2))
        assert "on the CPU; 2 GPUs are idle: the driver is too old for torch" in ranks.idle_gpus()
    assert "2 GPUs are idle: python -c 'import torch; torch.cuda.init()'" in ranks.idle_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "on the CPU; 2 GPUs are idle: CUDA_VISIBLE_DEVICES hides them" in ranks.idle_gpus()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "leaves 3 of 4 GPUs idle" in ranks.idle_gpus()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun's
    assert ranks.idle_gpus() == ""


def test_gpus_that_were_given_and_cannot_be_used_are_an_error_with_both_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "version").write_text("535.183.01\n")
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(machine, "torch_cuda", lambda: (13, 0))
    monkeypatch.setattr(machine, "driver_cuda", lambda: (12, 2))
    for visible in (None, "", "-1"):  # nothing was given, or the CPU is wanted
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        ranks.check_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f")
    versions = f"(torch {torch.__version__.partition('+')[0]} for CUDA 13.0; driver 535.183.01, "
    with pytest.raises(Hindered) as caught:
        ranks.check_gpus()
    assert str(caught.value) == (
        "CUDA_VISIBLE_DEVICES=GPU-8f, but torch cannot use a GPU: the driver is too old for torch: "
        f"update it, or install torch for CUDA 12 {versions}up to CUDA 12.2); "
        "CUDA_VISIBLE_DEVICES= (in a sweep resources.gpus=0) computes on the CPU"
    )
    monkeypatch.setattr(machine, "driver_cuda", lambda: (13, 1))

    def fail() -> None:
        raise RuntimeError("CUDA 999\nmore")

    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(Hindered, match=r"use a GPU: CUDA 999 \(torch .*, up to CUDA 13\.1\);"):
        ranks.check_gpus()
    with monkeypatch.context() as patch:  # before it joins the others
        patch.setattr(torch.distributed, "is_initialized", lambda: False)
        patch.setattr(ranks, "import_deepspeed", lambda: pytest.fail("too late"))
        with pytest.raises(Hindered, match="CUDA_VISIBLE_DEVICES=GPU-8f"):
            ranks.init_ranks()


def test_a_gpu_that_cannot_compute_is_an_error_before_work_starts(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "device", lambda: torch.device("cuda:0"))

    def ones(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available\nCUDA kernel errors")

    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(Hindered, match=r"cuda:0 cannot compute: CUDA error: no kernel image is "
                                       r"available \(torch .* for CUDA"):
        ranks.try_gpu()


class Recorder:
    """torch.distributed between two ranks with a GPU each, of which this process is the first."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.others: Any = None
        for name in ("init_process_group", "all_reduce", "destroy_process_group",
                     "broadcast_object_list"):
            patch.setattr(torch.distributed, name, partial(self.note, name))
        patch.setattr(torch.distributed, "all_gather_object", self.gather)
        patch.setattr(torch.distributed, "barrier", self.meet)
        patch.setattr(peers, "end_at_once", partial(self.note, "ends at once"))
        backend = SimpleNamespace(set_timeout=partial(self.note, "timeout"))
        patch.setattr(torch.distributed, "get_backend_impl", lambda device: backend)
        patch.setattr(torch.distributed, "is_initialized", lambda: bool(self.calls))
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "set_device", partial(self.note, "GPU"))
        properties = SimpleNamespace(uuid="a1b2")
        patch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        patch.setattr(ranks, "device", lambda: torch.device("meta"))
        patch.setattr(ranks, "try_gpu", lambda: None)
        patch.setattr(ranks, "idle_gpus", lambda: "")
        patch.setattr(ranks, "rank", lambda: 0)
        patch.setattr(ranks, "world_size", lambda: 2)
        patch.setattr(ranks, "import_deepspeed",
                      lambda: SimpleNamespace(init_distributed=lambda **_: None))
        patch.setattr(ranks.atexit, "register", lambda _: None)
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0",
                            "MASTER_PORT": "1"}.items():
            patch.setenv(name, value)

    def note(self, name: str, *given: Any, **more: Any) -> None:
        device = getattr(given[0], "device", None) if given else None
        self.calls.append((name, device.type if device else given[0] if given else None))

    def meet(self) -> None:
        self.note("barrier")
        if self.others is None:
            raise RuntimeError("[gloo] Connection closed by peer")

    def gather(self, every: list[Any], own: Any) -> None:
        every[:] = [own, self.others]


def test_between_gpus_votes_travel_by_gloo_and_a_rank_that_hangs_is_reported_by_it_first(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    recorder.others = ("c3d4", socket.gethostname())
    ranks.init_ranks(timeout_minutes=5)
    assert recorder.calls == [
        ("GPU", 0), ("ends at once", None), ("init_process_group", "cpu:gloo,cuda:nccl"),
        ("timeout", timedelta(minutes=7)), ("all_reduce", "meta"),
    ]
    recorder.calls.clear()
    recorder.calls.append(("initialized", None))
    ranks.any_rank(True)
    ranks.from_leader("text")
    assert recorder.calls[1:] == [("all_reduce", "cpu"), ("broadcast_object_list", ["text"])]


def test_ranks_that_share_a_gpu_or_of_which_some_have_none_are_refused_before_nccl_refuses_them(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    recorder.others = ("a1b2", socket.gethostname())
    with pytest.raises(UserError, match=r"ranks 0, 1 on .* have one GPU \(a1b2\), and each needs"):
        ranks.init_ranks()
    assert [name for name, _ in recorder.calls] == ["GPU", "ends at once", "init_process_group"]
    recorder.calls.clear()
    recorder.others = ("", "node2")
    with pytest.raises(UserError, match="rank 1 on node2 has no GPU, the other ranks have: give"):
        ranks.init_ranks()


def test_a_rank_leaves_nccl_at_its_end_unless_one_has_failed(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_failed, others, ends in (
        (False, "there", [("barrier", None), ("destroy_process_group", None)]), (True, "there", []),
        (False, None, [("barrier", None)]),  # the other one was lost after its last collective
    ):
        with monkeypatch.context() as patch:
            recorder = Recorder(patch)
            recorder.calls.append(("initialized", None))
            recorder.others = others
            patch.setattr(peers, "_has_failed", has_failed)
            ranks.leave()
            assert recorder.calls[1:] == ends


IN_A_BARRIER = """
import errno, os, sys, time
from pathlib import Path
from harness.base.files import write_json
from harness.runs.execute import execute
from harness.runs.run import Run
from harness.training import ranks
from tests.commands import free_port

def run(run, report=None):
    ranks.init_ranks()
    ranks.barrier()
    write_json(run.folder / f"begun-{ranks.rank()}.json",
               {"time": time.time(), "MASTER_PORT": os.environ.get("MASTER_PORT")})
    if ranks.rank() == 0:
        time.sleep(0.5)  # the other one waits in the barrier by then
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    ranks.barrier()

if __name__ == "__main__":
    from harness.cluster.rank_processes import log_to_stderr
    log_to_stderr()
    outcome = execute(Run(Path(sys.argv[1])))
    write_json(Path(sys.argv[1]) / "ended.json", time.time())
    sys.exit(0 if outcome == "complete" else 1)
"""


@pytest.mark.slow
def test_ranks_of_torchrun_end_soon_after_one_has_failed_while_the_other_is_in_a_barrier(
    tmp_path: Path
) -> None:
    program = tmp_path / "in_a_barrier.py"
    program.write_text(IN_A_BARRIER)
    run = Run(tmp_path / "run")
    run.create("run:\n  experiment: in_a_barrier.run\n")
    port = free_port()
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "RANK", "WORLD"))}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         f"--master-port={port}", str(program), str(run.folder)],
        env=alone | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=120,
    )
    over = time.time()
    assert done.returncode != 0
    assert run.status()["error"] == "metrics.jsonl: No space left on device"
    assert run.status()["hindered"]
    assert "rank 0: metrics.jsonl: No space left on device" in done.stderr  # of rank 1
    begun = [read_json(run.folder / f"begun-{rank}.json") for rank in range(2)]
    assert {one["MASTER_PORT"] for one in begun} == {str(port)}
    # 3 s on a quiet machine, of which torch's end takes 1; torchrun alone would wait for 30
    assert over - begun[0]["time"] < 20.0
