"""The cluster that the other tests of this folder stand on is a real one."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("cluster.py")


def test_a_job_over_two_nodes_sees_two_host_names_and_two_addresses(slurm: Any) -> None:
    output = slurm.run("srun", "-N2", "sh", "-c", 'echo "$(hostname) $(hostname -I)"').splitlines()
    assert len(output) == 2
    assert sorted(line.split()[0] for line in output) == ["node1", "node2"]
    assert len({line.split()[1] for line in output}) == 2


def test_nodes_find_each_other_by_name(slurm: Any) -> None:
    output = slurm.run("srun", "-N1", "-w", "node2", "getent", "hosts", "node1").split()
    assert output == [slurm.run("srun", "-N1", "-w", "node1", "hostname", "-I").strip(), "node1"]


def test_accounting_has_the_final_state_of_a_job(slurm: Any) -> None:
    job = slurm.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 0").strip()
    bad = slurm.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 3").strip()
    assert _ended(slurm, job) == "COMPLETED|0:0"
    assert _ended(slurm, bad) == "FAILED|3:0"


def test_a_killed_node_takes_its_processes_along_and_comes_back(slurm: Any, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    loop = f"while true; do date +%s.%N > {alive}; sleep 0.1; done"
    slurm.run("sbatch", "-w", "node2", "-o", "/dev/null", "--no-requeue", "--wrap", loop)
    _until(alive.exists)
    slurm.kill_node("node2")
    last = alive.read_text()
    time.sleep(0.5)
    assert alive.read_text() == last
    slurm.start_node("node2")
    assert slurm.run("srun", "-w", "node2", "hostname").strip() == "node2"


def test_a_preempted_job_gets_usr2_and_is_started_again(slurm: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n"
        f"echo start ${{SLURM_RESTART_COUNT:-0}} >> {out}\n"
        f"trap 'echo usr2 >> {out}' USR2\n"
        "for i in $(seq 600); do sleep 0.1; [ -n \"$SLURM_RESTART_COUNT\" ] && exit 0; done\n"
    )
    job = slurm.run(
        "sbatch", "--parsable", "-N2", "--exclusive", "--signal=B:USR2@60", "--open-mode=append",
        "-o", "/dev/null", str(script),
    ).strip()
    _until(out.exists)
    slurm.run("srun", "-p", "urgent", "-N2", "--exclusive", "true", timeout=90)
    _until(lambda: out.read_text().count("start") == 2, seconds=90)
    assert out.read_text().split("\n") == ["start 0", "usr2", "start 1", ""]
    assert _ended(slurm, job) == "COMPLETED|0:0"


def test_nothing_is_left_when_the_process_that_started_a_cluster_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "short-lived"
    folder.mkdir()
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import cluster, pathlib\n"
        f"c = cluster.Cluster(pathlib.Path({str(folder)!r}))\n"
        "c.folder.mkdir(exist_ok=True); c._make_network(['node1']); guard = c.guard()\n"
        "print(c._daemon('munged', 'sleep', '1000').pid, c._state()['bridge'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    daemon, bridge = owner.stdout.readline().split()
    assert os.path.exists(f"/proc/{daemon}")
    assert bridge in _links()
    owner.kill()
    owner.wait()
    _until(lambda: not folder.exists())
    assert not os.path.exists(f"/proc/{daemon}/ns/net")
    assert bridge not in _links()


def _links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout


def _ended(slurm: Any, job: str) -> str:
    """Wait for accounting's last word on a job; it comes some seconds after the job's end."""
    output = ""

    def known() -> bool:
        nonlocal output
        output = slurm.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode").strip()
        over = output.partition("|")[0] not in ("", "PENDING", "RUNNING", "COMPLETING")
        return over and output != "FAILED|0:0"  # the status comes a moment after the state

    _until(known)
    return output


def _until(check: Any, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.1)
