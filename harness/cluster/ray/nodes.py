"""Ray on the nodes of one job: our own `ray start` processes, one per node, closed to all others.

`ray stop` and `ray symmetric-run` act on every Ray that the user has on a node, so neither is used:
each node's task starts one child in a session of its own and ends it by its process id. Every port
is picked free and recorded; Ray's files lie in a private folder on the node; every connection needs
a token that only the owner can read; Ray is told what the job was given, not what the machine has.

    <job folder>/ray-<attempt>.json    address, ports, process ids; whether this Ray is over
    <job folder>/ray-<attempt>.token   the token
    <job folder>/ray-<node>.log        what `ray start` says
"""

import getpass
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.files import log_tail, read_json, write_json
from harness.base.locks import held_lock, lock_holder
from harness.base.machine import cgroup_texts
from harness.cluster.rank import end_with_parent
from harness.runs.stopping import stop_requested

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100_000_000
"""Only metrics travel through Ray; its smallest store is 75 MB."""
START_LIMIT_S = 120.0
START_TRIES = 3
"""A port that was free may be taken before Ray has it; on a busy node Ray gives up after 30 s."""
END_LIMIT_S = 10.0
POLL_S = 0.2
PORTS = (
    "node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port",
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
)
HEAD_PORTS = ("port", "dashboard-port", "ray-client-server-port")


class RayFailed(Exception):
    """Ray did not start or ended by itself; the message has its last words."""


@dataclass(frozen=True)
class Share:
    """What one node gives to Ray."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Rendezvous:
    """Where the tasks of one attempt of a job find each other: files in the job's folder."""

    folder: Path
    attempt: str

    @property
    def file(self) -> Path:
        return self.folder / f"ray-{self.attempt}.json"

    @property
    def token(self) -> Path:
        return self.folder / f"ray-{self.attempt}.token"

    def read(self) -> dict[str, Any] | None:
        """Return what the head has written, None before it has."""
        try:
            return dict(read_json(self.file))
        except FileNotFoundError:
            return None

    def write(self, **facts: Any) -> None:
        """Add facts; only the head writes."""
        write_json(self.file, {**(self.read() or {}), **facts})


@dataclass(frozen=True)
class Node:
    """One running `ray start --block`."""

    process: "subprocess.Popen[bytes]"
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
    """Return the environment of all that belongs to this Ray."""
    # a Ray or a token of the user's own must not be mistaken for ours
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return {
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(rendezvous.token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # TERM would otherwise wait half a minute for services that we do not have
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # Ray would start an idle worker per core; the driver waits for them, no trial needs them
        "RAY_prestart_worker_first_driver": "false",
        # it kills workers when the machine is full, by whomever; the job has a limit of its own
        "RAY_memory_monitor_refresh_ms": "0",
        # a run whose actor ends saves first; Ray would kill it at once
        "RAY_kill_child_processes_on_worker_exit": "false",
    }


@contextmanager
def head(
    rendezvous: Rendezvous, share: Share, *, peer: str | None, dashboard: bool = False
) -> Iterator[Node]:
    """Keep the head of a new Ray on this node while the body runs, as the rendezvous file says.

    peer: another node of the job, None when there is none; Ray listens on the address that faces
    it. dashboard: also serve Ray's pages, to this node only. Raises RayFailed.
    """
    descriptor = os.open(rendezvous.token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    ip = own_address(peer) if peer else "127.0.0.1"
    node: Node | None = None
    # where Tune keeps what it wants to: all nodes must see it, a paused trial may move
    storage = rendezvous.folder / f"tune-{rendezvous.attempt}"
    with _private_folder() as folder:
        try:
            # no autoscaler process: the nodes are those of the job
            options = ["--head", "--no-monitor", f"--include-dashboard={str(dashboard).lower()}"]
            options += ["--dashboard-host=127.0.0.1"] if dashboard else []
            node, ports = _start(options, (*HEAD_PORTS, *PORTS), rendezvous, share, ip, folder)
            rendezvous.write(
                state="up", address=f"{ip}:{ports['port']}", ip=ip, ports=ports,
                host=socket.gethostname(), pid=node.process.pid, temp=str(folder),
                storage=str(storage), init={"_node_ip_address": ip},
            )
            if dashboard:
                log.info("dashboard: %s; it asks for the token in %s",
                         tunnel(ports["dashboard-port"]), rendezvous.token)
            yield node
        finally:
            rendezvous.write(state="over")  # first, so that all nodes end at the same time
            if node is not None:
                node.end()
            rendezvous.token.unlink(missing_ok=True)
            shutil.rmtree(storage, ignore_errors=True)


def tunnel(port: int) -> str:
    """Say how to see, from one's own machine, what this node serves to itself."""
    here = f"{getpass.getuser()}@{socket.getfqdn()}"
    return f"ssh -L {port}:127.0.0.1:{port} {here}, then http://127.0.0.1:{port}"


def serve(rendezvous: Rendezvous, share: Share) -> None:
    """Be a further node of the Ray whose head another task starts, until it is over.

    Returns early when told to stop. Raises RayFailed.
    """
    found = _wait_for_head(rendezvous)
    if found is None:
        return
    ip, address = own_address(found["ip"]), f"--address={found['address']}"
    with _private_folder() as folder:
        node, _ = _start([address], PORTS, rendezvous, share, ip, folder)
        try:
            while not stop_requested() and not _is_over(rendezvous):
                node.check()
                time.sleep(POLL_S)
        except RayFailed:
            if not _is_over(rendezvous):  # Ray's nodes also end by themselves when their head goes
                raise
        finally:
            node.end()


def _wait_for_head(rendezvous: Rendezvous) -> dict[str, Any] | None:
    deadline = time.monotonic() + START_TRIES * START_LIMIT_S
    while not stop_requested():
        found = rendezvous.read()
        if found is not None:
            return found if found["state"] == "up" else None
        if time.monotonic() > deadline:
            raise RayFailed(f"{rendezvous.file}: the first node's Ray did not start")
        time.sleep(POLL_S)
    return None


def _is_over(rendezvous: Rendezvous) -> bool:
    found = rendezvous.read()
    return found is None or found["state"] == "over"


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Give Ray a folder on this node that only the owner may enter; removed at the end.

    Those that killed jobs of this user left behind are removed first. Its path is short because
    that of a socket may have 107 characters.
    """
    for old in Path("/tmp").glob("ray-*/owner.lock"):
        with suppress(OSError):  # another job may be removing it too
            if old.stat().st_uid == os.getuid() and lock_holder(old) is None:
                shutil.rmtree(old.parent)
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    with held_lock(folder / "owner.lock"):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _start(
    options: list[str], names: tuple[str, ...], rendezvous: Rendezvous, share: Share, ip: str,
    folder: Path,
) -> tuple[Node, dict[str, int]]:
    """Start Ray on this node and wait until it is up; with other ports if that does not work.

    names: the ports it needs. Returns also which they are.
    """
    for attempt in range(1, START_TRIES + 1):
        ports = free_ports(names)
        # a folder inside, because Ray opens it to everyone
        inner = folder / str(attempt)
        node = _launch([*options, f"--temp-dir={inner}"], rendezvous, share, ip, ports)
        try:
            _wait_until_up(node, inner)
            return node, ports
        except RayFailed as error:
            node.end()
            if attempt == START_TRIES:
                raise
            log.warning("%s\nanother try with other ports", error)
    raise AssertionError("unreachable")


def _launch(
    options: list[str], rendezvous: Rendezvous, share: Share, ip: str, ports: dict[str, int]
) -> Node:
    """Start `ray start` in a session of its own."""
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--block", *options,
        f"--node-ip-address={ip}", f"--num-cpus={share.cpus}", f"--num-gpus={share.gpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--include-log-monitor=false",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    memory = memory_limit()
    if memory is not None:
        command.append(f"--memory={memory - OBJECT_STORE_BYTES}")
    log_file = rendezvous.folder / f"ray-{socket.gethostname()}.log"
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.cluster.ray.nodes", *command],
            env=environment(rendezvous), start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )
    log.info("Ray starts on %s (%s), process %d, %s, ports %s", socket.gethostname(), ip,
             process.pid, share, ports)
    return Node(process, log_file)


def _wait_until_up(node: Node, folder: Path) -> None:
    """Wait for the file that `ray start` writes once all its parts answer, or for a stop."""
    deadline = time.monotonic() + START_LIMIT_S
    while not stop_requested() and not (folder / "ray_current_cluster").exists():
        node.check()
        if time.monotonic() > deadline:
            raise RayFailed(f"Ray did not start within {START_LIMIT_S:.0f} s; {node.log}")
        time.sleep(POLL_S)


# --- facts of this node ---


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Return a port by each name, all different and free on every address now."""
    probes = {name: socket.socket() for name in names}
    try:
        for probe in probes.values():
            probe.bind(("", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in probes.items()}
    finally:
        for probe in probes.values():
            probe.close()


def own_address(towards: str) -> str:
    """Return the address by which this node reaches another; nothing is sent.

    Not what the own host name stands for: that is 127.0.1.1 on many machines.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))
        return str(probe.getsockname()[0])


def memory_limit() -> int | None:
    """Return the bytes that this process and its children may use, None when nothing says so."""
    slurm = os.environ
    limits = []
    if "SLURM_MEM_PER_NODE" in slurm:
        limits.append(int(slurm["SLURM_MEM_PER_NODE"]) << 20)
    elif "SLURM_MEM_PER_CPU" in slurm and "SLURM_CPUS_ON_NODE" in slurm:
        limits.append((int(slurm["SLURM_MEM_PER_CPU"]) * int(slurm["SLURM_CPUS_ON_NODE"])) << 20)
    limits += _cgroup_limits()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min((limit for limit in limits if 0 < limit < total), default=None)


def _cgroup_limits() -> list[int]:
    """Return the memory limits of this process' control group and of those around it."""
    texts = cgroup_texts("memory", "memory.max", "memory.limit_in_bytes")
    return [int(text) for text in texts if text.isdigit()]


def become(command: list[str]) -> None:
    """Turn this process into `ray start`, deaf to USR2 and ended with its parent.

    SLURM sends a preemption's USR2 to every process of a job; Ray's would die of it, and with them
    the runs' chance to answer in order. All that Ray starts inherits the deafness.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    end_with_parent()
    os.execv(command[0], command)


if __name__ == "__main__":
    become(sys.argv[1:])
