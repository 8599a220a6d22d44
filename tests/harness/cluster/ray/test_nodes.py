"""Ray on the nodes of a job."""

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cluster.ray import nodes


def test_what_a_node_serves_to_itself_is_reached_by_a_tunnel() -> None:
    text = nodes.tunnel(8123)
    assert text.startswith("ssh -L 8123:127.0.0.1:8123 ")
    assert text.endswith(f"@{socket.getfqdn()}, then http://127.0.0.1:8123")


def test_ports_are_free_and_all_different() -> None:
    names = (*nodes.HEAD_PORTS, *nodes.PORTS)
    ports = nodes.free_ports(names)
    assert list(ports) == list(names)
    assert len(set(ports.values())) == len(names)
    for port in ports.values():
        with socket.socket() as one:
            one.bind(("", port))


def test_rays_folder_is_private_and_what_killed_jobs_left_is_removed() -> None:
    program = (
        "import os, signal; from harness.cluster.ray.nodes import _private_folder\n"
        "with _private_folder() as folder:\n"
        "    print(folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    assert left.exists()
    with nodes._private_folder() as folder:
        assert not left.exists()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with nodes._private_folder() as other:
            assert folder.exists()
            assert other != folder
    assert not folder.exists()


def test_memory_is_what_slurm_gave_and_never_more_than_the_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "_cgroup_limits", lambda: [])
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    assert nodes.memory_limit() is None
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1024")
    assert nodes.memory_limit() == 1 << 30
    monkeypatch.setattr(nodes, "_cgroup_limits", lambda: [1 << 29, 1 << 62])
    assert nodes.memory_limit() == 1 << 29
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert nodes.memory_limit() == 400 << 20


def test_a_ray_of_the_users_own_is_not_mistaken_for_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    seen = nodes.environment(nodes.Rendezvous(tmp_path, "7-0"))
    assert "RAY_ADDRESS" not in seen
    assert "RAY_AUTH_TOKEN" not in seen
    assert seen["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray-7-0.token")
