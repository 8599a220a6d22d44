"""A real SLURM of several nodes on one machine, for tests and for trying things by hand.

    python tests/slurm/cluster.py up [--nodes 2] [--cpus 2] [--memory-mb 8000] [--dir DIR]
    python tests/slurm/cluster.py down | kill-node NAME | start-node NAME | restart-controller

munged, MariaDB, slurmdbd and slurmctld run on this machine; each node is a slurmd in network, UTS
and mount name spaces of its own, so that host names, addresses and ports are separate as on a real
cluster, while all share one file system. Everything is private to DIR: its own munge key and
socket, free ports, a bridge and a network that nobody else uses. Nothing in /etc or /run is
touched, several clusters can live side by side, and the name spaces vanish with their processes.

Debian 12, as root: apt-get install --no-install-recommends slurmctld slurmd slurm-client slurmdbd
munge mariadb-server iproute2
"""

import argparse
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TOOLS = {
    "slurmctld": "slurmctld", "slurmd": "slurmd", "slurmdbd": "slurmdbd", "sbatch": "slurm-client",
    "munged": "munge", "mariadbd": "mariadb-server", "ip": "iproute2", "unshare": "util-linux",
}
"""Programs that are needed, and the Debian packages that have them."""
GPUS = 2
"""How many GPUs each node claims to have; only SLURM knows of them."""
START_S = 60
"""How long anything may take to start."""

SLURM_CONF = Path(__file__).with_name("slurm.conf").read_text(encoding="utf-8")

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
DbdHost={host}
DbdAddr={net}.1
DbdPort={dbd_port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
LogFile={dir}/slurmdbd.log
PidFile={dir}/slurmdbd.pid
"""

DATABASE_SQL = """\
create database slurm_acct;
create user slurm@127.0.0.1 identified by 'slurm';
grant all on slurm_acct.* to slurm@127.0.0.1;
"""

# Runs inside the node's name spaces. /etc/hosts is covered by a mount that only this node sees.
# It waits for a line on stdin: the network card is moved in from outside, once this process lives.
NODE_SCRIPT = """\
set -e
hostname {name}
mount --bind {dir}/hosts /etc/hosts
read -r _
ip link set lo up
ip addr add {address}/24 dev eth0
ip link set eth0 up
exec slurmd -D -N {name}
"""


class ClusterError(Exception):
    """The cluster did not do what it was asked to."""


def missing() -> str | None:
    """Say why no cluster can be started on this machine, or return None when one can."""
    if os.geteuid() != 0:
        return "a SLURM of our own needs root (name spaces)"
    absent = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if absent:
        return f"packages are missing: apt-get install {' '.join(absent)}"
    probe = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True
    )
    if probe.returncode:
        return f"name spaces cannot be made here: {probe.stderr.strip()}"
    return None


class Cluster:
    """One cluster, known by its folder; every method also works on a cluster of another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_file = folder / "cluster.json"

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environ(self) -> dict[str, str]:
        """This process's environment, with the variable by which SLURM's commands find us."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        return {**kept, "SLURM_CONF": str(self.conf)}

    @property
    def nodes(self) -> list[str]:
        return list(self._state()["nodes"])

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run one of SLURM's commands and return its output; raises ClusterError on failure."""
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    # --- all of it ---

    def up(self, *, nodes: int = 2, cpus: int = 2, memory_mb: int = 8000) -> None:
        """Start everything and return when all nodes are idle; on failure nothing is left.

        `cpus` and `memory_mb` are what each node claims to have; it may be more than is there.
        """
        reason = missing()
        if reason:
            raise ClusterError(reason)
        self.down()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged refuses a socket in a folder that others cannot enter
        try:
            self._make_network([f"node{i}" for i in range(1, nodes + 1)])
            self._write_files(cpus=cpus, memory_mb=memory_mb)
            self._start_services()
            for name in self.nodes:
                self.start_node(name, wait=False)
            self._wait("all nodes to be idle", self._all_idle)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every process, take the bridge away and delete the folder. Never fails half-way."""
        try:
            state = self._state()
        except FileNotFoundError:
            return
        for name in state["nodes"]:
            self.kill_node(name)
        for service in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            _end(state["pids"].get(service))
        subprocess.run(["ip", "link", "del", state["bridge"]], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def guard(self) -> subprocess.Popen[bytes]:
        """Have the cluster taken down when this process ends, even if it is killed."""
        return subprocess.Popen(
            [sys.executable, __file__, "--dir", str(self.folder), "down", "--when-stdin-closes"],
            stdin=subprocess.PIPE, start_new_session=True,
        )

    def restart_controller(self) -> None:
        """End slurmctld and start it again from its saved state."""
        _end(self._state()["pids"]["slurmctld"])
        self._start_controller()
        self._wait("the nodes to register again", lambda: "unk" not in self._node_states())

    @contextmanager
    def configured(self, before: str, after: str) -> Iterator[None]:
        """Run the body with a piece of slurm.conf replaced."""
        whole = self.conf.read_text()
        assert before in whole, before
        try:
            self.conf.write_text(whole.replace(before, after))
            self.run("scontrol", "reconfigure")
            yield
        finally:
            self.conf.write_text(whole)
            self.run("scontrol", "reconfigure")

    @contextmanager
    def without_accounting(self) -> Iterator[None]:
        """Run the body with slurmdbd ended."""
        _end(self._state()["pids"]["slurmdbd"])
        try:
            yield
        finally:
            self._daemon("slurmdbd", "slurmdbd", "-D")
            self._wait("slurmdbd", lambda: self._works("sacctmgr", "-n", "list", "cluster"))

    # --- nodes ---

    def start_node(self, name: str, *, wait: bool = True) -> None:
        """Switch a node on (again); with `wait`, return when SLURM takes jobs for it."""
        state = self._state()
        if "network" in state["nodes"][name]:
            # Real machines boot for minutes, and SLURM misses them after 20 s. Ours are back within
            # a second, and SLURM would go on believing in the jobs that died with them.
            self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=power cut")
        before = self._registered(name)
        (self.folder / name / "spool").mkdir(parents=True, exist_ok=True)
        script = NODE_SCRIPT.format(
            name=name, dir=self.folder, address=state["nodes"][name]["address"]
        )
        process = self._daemon(
            name, "unshare", "--net", "--uts", "--mount", "sh", "-c", script, stdin=subprocess.PIPE
        )
        mine = os.readlink("/proc/self/ns/net")
        self._wait(f"{name}'s name space", lambda: _network_of(process.pid) not in (None, mine))
        outside = self._cable(name)
        _sh("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0",
            "netns", str(process.pid))
        _sh("ip", "link", "set", outside, "master", state["bridge"], "up")
        self._update(name, network=_network_of(process.pid))
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        if wait:
            self._wait(f"{name} to register", lambda: self._registered(name) != before)
            self._wait(f"{name} to take jobs", lambda: self._resumed(name))

    def pid_of(self, name: str) -> int:
        """Return the process of a service, or of a slurmd: its name spaces are the node's."""
        return int(self._state()["pids"][name])

    def kill_node(self, name: str) -> None:
        """As a power cut: slurmd and every process on the node are gone when this returns."""
        network = self._state()["nodes"][name].get("network")
        while network and (pids := _processes_in(network)):
            for pid in pids:
                _kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        # the kernel would do so too, when it gets round to the empty name space
        subprocess.run(["ip", "link", "del", self._cable(name)], capture_output=True)

    def _cable(self, name: str) -> str:
        """Return the end of a node's network cable that is outside of the node."""
        state = self._state()
        return f"{state['bridge']}-{state['nodes'][name]['index']}"

    def _registered(self, name: str) -> str:
        """Return when, as the controller knows it, the node's slurmd was started."""
        shown = self._output("scontrol", "show", "node", name)
        return next((word for word in shown.split() if word.startswith("SlurmdStartTime=")), "")

    def _resumed(self, name: str) -> bool:
        """Whether the node takes jobs. SLURM may still take it for down; tell it otherwise."""
        state = self._output("sinfo", "-h", "-n", name, "-o", "%t", "-p", "main").strip()
        if state.startswith("down"):
            self.run("scontrol", "update", f"nodename={name}", "state=resume")
        return state in ("idle", "mix", "alloc")

    # --- the parts of `up` ---

    def _make_network(self, names: list[str]) -> None:
        """Make a bridge on the first private /24 that neither this machine nor a cluster uses."""
        taken = _sh("ip", "-4", "-o", "addr")
        free = (n for n in range(77, 255) if f" 10.77.{n}." not in taken)

        def made(number: int) -> bool:  # not if another cluster was faster
            return self._works("ip", "link", "add", f"slurm{number}", "type", "bridge")

        third = next(n for n in free if made(n))
        bridge, net = f"slurm{third}", f"10.77.{third}"
        nodes = {
            name: {"index": i, "address": f"{net}.{10 + i}"} for i, name in enumerate(names, 1)
        }
        self._save({"bridge": bridge, "net": net, "nodes": nodes, "pids": {}})
        _sh("ip", "addr", "add", f"{net}.1/24", "dev", bridge)
        _sh("ip", "link", "set", bridge, "up")

    def _write_files(self, *, cpus: int, memory_mb: int) -> None:
        state = self._state()
        addresses = {name: node["address"] for name, node in state["nodes"].items()}
        host = socket.gethostname()
        ctld_port, dbd_port, db_port = _free_ports(3)
        values = {
            "dir": self.folder, "net": state["net"], "host": host, "ctld_port": ctld_port,
            "dbd_port": dbd_port, "db_port": db_port,
            # SLURM lets a requeued job wait until its old credentials are void, by default 2 min.
            "requeue_s": 10,
            "nodes": "\n".join(
                f"NodeName={name} NodeHostname={name} NodeAddr={address} CPUs={cpus} Boards=1 "
                f"SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory_mb} "
                f"Gres=gpu:{GPUS}"
                for name, address in addresses.items()
            ),
        }
        (self.folder / "state").mkdir()
        self.conf.write_text(SLURM_CONF.format(**values))
        for number in range(GPUS):  # SLURM wants device files: these are /dev/null
            os.mknod(self.folder / f"gpu{number}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        database = self.folder / "slurmdbd.conf"
        database.touch(mode=0o600)  # slurmdbd insists
        database.write_text(SLURMDBD_CONF.format(**values))
        hosts = ["127.0.0.1 localhost", f"{state['net']}.1 {host}"]
        hosts += [f"{address} {name}" for name, address in addresses.items()]
        (self.folder / "hosts").write_text("\n".join(hosts) + "\n")
        (self.folder / "database.sql").write_text(DATABASE_SQL)
        self._save({**state, "db_port": db_port})

    def _start_services(self) -> None:
        folder = self.folder
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._daemon(
            "munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.sock",
            f"--key-file={key}", f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        )
        # two that begin together would take each other's temporary tables, by their name
        temporary = f"--tmpdir={folder}"
        _sh("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={folder}/db",
            "--skip-test-db", temporary)
        self._daemon(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}/db",
            temporary, f"--socket={folder}/db.sock", f"--pid-file={folder}/db.pid",
            "--skip-log-bin", "--bind-address=127.0.0.1", f"--port={self._state()['db_port']}",
            "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0",
            f"--init-file={folder}/database.sql",
        )
        self._wait("munged", (folder / "munge.sock").exists)
        self._wait("MariaDB", lambda: _answers(self._state()["db_port"]))
        self._daemon("slurmdbd", "slurmdbd", "-D")
        # submitit asks sacct for the states of jobs, so accounting must know the cluster
        self._wait("slurmdbd", lambda: self._works("sacctmgr", "-n", "list", "cluster"))
        self.run("sacctmgr", "-i", "add", "cluster", "kit")
        # accounts have limits, so each user who submits needs one
        self.run("sacctmgr", "-i", "add", "user", "nobody", "account=root")
        self._start_controller()

    def _start_controller(self) -> None:
        self._daemon("slurmctld", "slurmctld", "-D")
        self._wait("slurmctld", lambda: "is UP" in self._output("scontrol", "ping"))

    def _daemon(self, name: str, *command: str, stdin: int = subprocess.DEVNULL) -> Any:
        """Start a process that outlives this one, and record its id."""
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                command, env=self.environ, stdin=stdin, stdout=out, stderr=out,
                start_new_session=True, cwd="/",
            )
        state = self._state()
        state["pids"][name] = process.pid
        self._save(state)
        return process

    # --- small things ---

    def _node_states(self) -> list[str]:
        return self._output("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split()

    def _all_idle(self) -> bool:
        return self._node_states() == ["idle"] * len(self.nodes)

    def _works(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environ, capture_output=True).returncode == 0

    def _output(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=60
        ).stdout

    def _wait(self, what: str, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not check():
            if time.monotonic() > deadline:
                raise ClusterError(f"waited {START_S} s for {what}\n{self._last_words()}")
            time.sleep(0.1)

    def _last_words(self) -> str:
        logs = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
        logs += self.folder.glob("*/slurmd.log")
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            for log in sorted(logs) if log.stat().st_size
        )

    def _state(self) -> dict[str, Any]:
        return dict(json.loads(self.state_file.read_text()))

    def _save(self, state: dict[str, Any]) -> None:
        self.state_file.write_text(json.dumps(state, indent=2))

    def _update(self, name: str, **facts: Any) -> None:
        state = self._state()
        state["nodes"][name].update(facts)
        self._save(state)


def _sh(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _free_ports(count: int) -> list[int]:
    """Return ports that are free on every address; all are held until the last one is known."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _network_of(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None


def _processes_in(network: str) -> list[int]:
    pids: Iterable[str] = filter(str.isdigit, os.listdir("/proc"))
    return [int(pid) for pid in pids if _network_of(int(pid)) == network]


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # ours, if this process started the cluster


def _end(pid: int | None, *, patience_s: float = 15) -> None:
    """End a process and wait until it is gone: asked first, then killed."""
    if pid is None:
        return
    deadline = time.monotonic() + patience_s
    _kill(pid, signal.SIGTERM)
    while _network_of(pid) is not None:  # a zombie has no name space any more
        if time.monotonic() > deadline:
            _kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        _kill(pid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dir", type=Path, default=Path("/tmp/slurm-cluster"))
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up")
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--cpus", type=int, default=2)
    up.add_argument("--memory-mb", type=int, default=8000)
    commands.add_parser("down").add_argument("--when-stdin-closes", action="store_true")
    commands.add_parser("restart-controller")
    for command in ("kill-node", "start-node"):
        commands.add_parser(command).add_argument("name")
    options = parser.parse_args()
    cluster = Cluster(options.dir.resolve())
    try:
        if options.command == "up":
            cluster.up(nodes=options.nodes, cpus=options.cpus, memory_mb=options.memory_mb)
            print(f"export SLURM_CONF={cluster.conf}")
        elif options.command in ("kill-node", "start-node"):
            getattr(cluster, options.command.replace("-", "_"))(options.name)
        elif options.command == "restart-controller":
            cluster.restart_controller()
        else:
            if options.when_stdin_closes:
                sys.stdin.read()
            cluster.down()
    except (ClusterError, FileNotFoundError, KeyError) as error:
        sys.exit(f"cluster.py: {error}")


if __name__ == "__main__":
    main()
