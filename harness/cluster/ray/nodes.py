"""Ray on the nodes of one job: one `ray start` process per node, closed to other users and jobs.

`ray stop` and `ray symmetric-run` act on all of the user's Rays on a node, so neither is used: each
node's task starts one child in a separate session and ends it by its process id. Free ports are
chosen and recorded; Ray's files are in a private folder on the node; every connection needs a token
that only the owner can read; Ray gets the job's resources, not the machine's.

    <job folder>/ray-<attempt>.json    address, ports, process ids; whether this Ray is over
    <job folder>/ray-<attempt>.token   the token
    <job folder>/ray-<node>.log        the output of `ray start`
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.files import log_tail, read_json, write_json
from harness.base.locks import held_lock, lock_holder
from harness.base.machine import cgroup_texts, user_name
from harness.base.reading import exists
from harness.cluster.rank_processes import Process, end_with_parent, start_process
from harness.runs.stopping import stop_requested
from harness.sweeps.keys import Resources

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100_000_000
"""Only metrics travel through Ray; its smallest store is 75 MB."""
START_LIMIT_S = 120.0
START_TRIES = 3
"""A free port may be taken before Ray binds it; on a busy node Ray gives up after 30 s."""
END_LIMIT_S = 10.0
POLL_S = 0.2
PORTS = (
    "node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port",
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
)
HEAD_PORTS = ("port", "dashboard-port", "ray-client-server-port")


class RayFailed(Exception):
    """Ray did not start or ended by itself; the message has the end of its log."""


@dataclass(frozen=True)
class Rendezvous:
    """Files in the job's folder by which the tasks of one attempt find each other."""

    folder: Path
    attempt: str

    @property
    def file(self) -> Path:
        return self.folder / f"ray-{self.attempt}.json"

    @property
    def token(self) -> Path:
        return self.folder / f"ray-{self.attempt}.token"

    def read(self) -> dict[str, Any]:
        """Return what the head has written so far."""
        return dict(read_json(self.file)) if exists(self.file) else {}

    def write(self, **facts: Any) -> None:
        """Add facts; only the head writes."""
        write_json(self.file, {**self.read(), **facts})


@dataclass(frozen=True)
class Node:
    """One running `ray start --block`."""

    process: Process
    log: Path

    def check(self) -> None:
        """Raise RayFailed when Ray has ended on this node."""
        if self.process.poll() is not None:
            host = socket.gethostname()
            raise RayFailed(f"Ray ended on {host}; {self.log}:\n{log_tail(self.log)}")

    def end(self) -> None:
        """End Ray on this node, with all its workers."""
        self.process.terminate()
        try:
            self.process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            log.warning("Ray did not end within %.0f s and is killed", END_LIMIT_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(rendezvous: Rendezvous) -> dict[str, str]:
    """Return the environment of all processes of this Ray."""
    # without the user's own Ray and token
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return {
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(rendezvous.token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # on TERM Ray would wait half a minute for services that we do not run
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # the driver would wait for one idle worker per core, which no trial needs
        "RAY_prestart_worker_first_driver": "false",
        # it would kill workers when others fill the machine's memory; the job has its own limit
        "RAY_memory_monitor_refresh_ms": "0",
        # a run saves when its actor ends; Ray would kill it at once
        "RAY_kill_child_processes_on_worker_exit": "false",
    }


@contextmanager
def head(
    rendezvous: Rendezvous, share: Resources, *, peer: str | None, dashboard: bool = False
) -> Iterator[Node]:
    """Run the head of a new Ray on this node while the body runs; fills the rendezvous file.

    share: what each node gives to Ray. peer: another node of the job, if any; Ray listens on the
    address that reaches it. dashboard: also serve Ray's pages, to this node only. Raises RayFailed.
    """
    descriptor = os.open(rendezvous.token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    ip = own_address(peer) if peer else "127.0.0.1"
    node: Node | None = None
    # for Tune's files; all nodes must see them, because a paused trial may move
    storage = rendezvous.folder / f"tune-{rendezvous.attempt}"
    with _private_folder() as folder:
        try:
            # no autoscaler process: the nodes are those of the job
            options = ["--head", "--no-monitor", f"--include-dashboard={str(dashboard).lower()}"]
            options += ["--dashboard-host=127.0.0.1"] if dashboard else []
            node, ports = _start(options, (*HEAD_PORTS, *PORTS), rendezvous, share, ip, folder)
            rendezvous.write(state="up", address=f"{ip}:{ports['port']}", ip=ip, ports=ports,
                             host=socket.gethostname(), pid=node.process.pid, temp=str(folder),
                             storage=str(storage), init={"_node_ip_address": ip})
            if dashboard:
                log.info("dashboard: %s; it asks for the token in %s",
                         tunnel(ports["dashboard-port"]), rendezvous.token)
            yield node
        finally:
            rendezvous.write(state="over")  # first, so that all nodes end together
            if node is not None:
                node.end()
            rendezvous.token.unlink(missing_ok=True)
            shutil.rmtree(storage, ignore_errors=True)


def tunnel(port: int) -> str:
    """Return the commands that show the user a page which this node serves only to itself."""
    here = f"{user_name()}@{socket.getfqdn()}"
    return f"ssh -L {port}:127.0.0.1:{port} {here}, then http://127.0.0.1:{port}"


def serve(rendezvous: Rendezvous, share: Resources) -> None:
    """Run a further node of the Ray whose head another task starts, until that ends. Returns early
    on a stop request. Raises RayFailed."""
    deadline = time.monotonic() + START_TRIES * START_LIMIT_S
    while "state" not in (facts := rendezvous.read()) and not stop_requested():
        if time.monotonic() > deadline:
            raise RayFailed(f"{rendezvous.file}: the first node's Ray did not start")
        time.sleep(POLL_S)
    if facts.get("state") != "up":
        return
    ip, address = own_address(facts["ip"]), f"--address={facts['address']}"
    with _private_folder() as folder:
        node, _ = _start([address], PORTS, rendezvous, share, ip, folder)
        try:
            while not stop_requested() and rendezvous.read()["state"] == "up":
                node.check()
                time.sleep(POLL_S)
        except RayFailed:
            if rendezvous.read()["state"] == "up":  # otherwise this node has followed its head
                raise
        finally:
            node.end()


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Create Ray's folder on this node, which only the owner may enter; removed at the end.

    Removes the folders of this user's killed jobs first. The path is short because a socket's may
    have 107 characters.
    """
    for old in Path("/tmp").glob("ray-*/owner.lock"):
        with suppress(OSError):  # another job may remove it too
            if old.stat().st_uid == os.getuid() and lock_holder(old) is None:
                shutil.rmtree(old.parent)
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name,
        held_lock(Path(name) / "owner.lock"),
    ):
        yield Path(name)


def _start(
    options: list[str], names: tuple[str, ...], rendezvous: Rendezvous, share: Resources, ip: str,
    folder: Path,
) -> tuple[Node, dict[str, int]]:
    """Start Ray on this node and wait until it is up, or for a stop; returns its ports too. After a
    failure it tries again with other ports. names: the ports it needs."""
    memory, host = memory_limit(), socket.gethostname()
    log_file = rendezvous.folder / f"ray-{host}.log"
    for attempt in range(1, START_TRIES + 1):
        ports = free_ports(names)
        inner = folder / str(attempt)  # a folder inside, because Ray opens it to everyone
        process = start_process(
            "harness.cluster.ray.nodes", str(Path(sys.executable).with_name("ray")), "start",
            "--block", *options, f"--temp-dir={inner}", f"--node-ip-address={ip}",
            f"--num-cpus={share.cpus}", f"--num-gpus={share.gpus}", "--include-log-monitor=false",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            *(f"--{name}={port}" for name, port in ports.items()),
            *([] if memory is None else [f"--memory={memory - OBJECT_STORE_BYTES}"]),
            log_file=log_file, environment=environment(rendezvous),
        )
        log.info("Ray starts on %s (%s), process %d, %d cores, %d GPUs, ports %s", host, ip,
                 process.pid, share.cpus, share.gpus, ports)
        node = Node(process, log_file)
        try:
            _wait_until_up(node, inner)
            return node, ports
        except RayFailed as error:
            node.end()
            if attempt == START_TRIES:
                raise
            log.warning("%s\ntrying again with other ports", error)
    raise AssertionError("unreachable")


def _wait_until_up(node: Node, folder: Path) -> None:
    """Wait for a stop, or for the file that `ray start` writes once all its services answer."""
    deadline = time.monotonic() + START_LIMIT_S
    while not stop_requested() and not (folder / "ray_current_cluster").exists():
        node.check()
        if time.monotonic() > deadline:
            raise RayFailed(f"Ray did not start within {START_LIMIT_S:.0f} s; {node.log}")
        time.sleep(POLL_S)


# --- facts of this node ---


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Return a port for each name, all different and now free on every address."""
    with ExitStack() as stack:
        probes = {name: stack.enter_context(socket.socket()) for name in names}
        for probe in probes.values():
            probe.bind(("", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in probes.items()}


def own_address(towards: str) -> str:
    """Return the address from which this node reaches another; nothing is sent. The host name does
    not give it: on many machines that resolves to 127.0.1.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))
        return str(probe.getsockname()[0])


def memory_limit() -> int | None:
    """Return the bytes that this process and its children may use, None for no known limit."""
    slurm, limits = os.environ, _cgroup_limits()
    if "SLURM_MEM_PER_NODE" in slurm:
        limits.append(int(slurm["SLURM_MEM_PER_NODE"]) << 20)
    elif "SLURM_MEM_PER_CPU" in slurm and "SLURM_CPUS_ON_NODE" in slurm:
        limits.append((int(slurm["SLURM_MEM_PER_CPU"]) * int(slurm["SLURM_CPUS_ON_NODE"])) << 20)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min((limit for limit in limits if 0 < limit < total), default=None)


def _cgroup_limits() -> list[int]:
    texts = cgroup_texts("memory", "memory.max", "memory.limit_in_bytes")
    return [int(text) for text in texts if text.isdigit()]


def exec_ray(command: list[str]) -> None:
    """Exec `ray start`; ignore SIGUSR2 and die with the parent.

    Before a preemption SLURM sends USR2 to every process of a job. It would kill Ray before the
    runs can save. All of Ray's child processes ignore it too.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    end_with_parent()
    os.execv(command[0], command)


if __name__ == "__main__":
    exec_ray(sys.argv[1:])
