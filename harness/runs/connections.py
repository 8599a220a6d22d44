"""The connections between the ranks of one attempt at a run; `harness.runs.peers` uses them."""

import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import Hindered
from harness.base.files import read_json, write_json
from harness.base.locks import writing
from harness.runs.stopping import Stopped, stop_requested, was_terminated

log = logging.getLogger(__name__)
Failure = dict[str, Any]
"""The entries of a failed run's status: error, lines, hindered."""

NOTICE_S = (5.0, 30.0)
"""When a rank that waits for others says so for the first time, and how often after that."""
GRACE_S = 1.0
"""How long the main thread may take to end by itself after another rank has failed, on a CPU."""
LINGER_S = 3.0
"""How long a failed rank waits: rank 0 for ranks that have not connected, others for rank 0, which
writes the status. With `srun --kill-on-bad-exit` the first one that ends takes the others along."""
HANDSHAKE_S = 2.0
POLL_S = 0.1
KEEPALIVE_S = 60
LONGEST_LINE = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RankLost(RuntimeError):
    """Another rank has failed; `cause` returns why."""


def _process() -> list[Any]:
    return [socket.gethostname(), os.getpid()]


class Link:
    """A connection to another rank; a message is a JSON object in a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(HANDSHAKE_S)
        # hours without a message: a firewall would forget the connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        self.connection, self.reader = connection, connection.makefile("rb")
        self.sending = threading.Lock()

    def send(self, **message: Any) -> None:
        """Send a message, if the other side still listens."""
        with suppress(OSError), self.sending:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, None at the end of the connection."""
        try:
            line = self.reader.readline(LONGEST_LINE)
            return dict(json.loads(line)) if line.endswith(b"\n") else None
        except (OSError, ValueError, TypeError):
            return None

    def close(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.reader.close()
            self.connection.close()


class Connections:
    """The connections of this rank: rank 0's to all others, another rank's to rank 0."""

    def __init__(self, file: Path, rank: int, world: int, watched: bool) -> None:
        self.file, self.folder = file, file.parent
        self.rank, self.world, self.watched = rank, world, watched
        self.server: socket.socket | None = None
        self.changed = threading.Condition()
        self.links: dict[int, Link] = {}
        self.hosts: dict[int, str] = {}
        self.leader: list[Any] = []
        self.left: set[int] = set()  # ranks that ended their work without a failure
        self.asked_to_stop = self.is_closed = False
        self.failures: dict[int, Failure] = {}
        self.agreed: dict[str, int] = {}
        self.verdict: dict[str, Any] | None = None  # rank 0's last message, also to who comes late
        self.has_met = False
        self.ender: Literal["", "main", "thread"] = ""
        self.grace_s = GRACE_S
        self.record: Callable[[Failure], object] = lambda failure: None

    # --- meeting ---

    def open(self) -> None:
        """On rank 0, listen for the others and write where."""
        if self.rank != 0:
            return
        host = os.environ.get("MASTER_ADDR", LOOPBACK[0])
        if near := host in LOOPBACK:
            host = LOOPBACK[0]
        both = not near and socket.has_dualstack_ipv6()
        self.server = socket.create_server(
            (host if near else "", 0), dualstack_ipv6=both,
            family=socket.AF_INET6 if both else socket.AF_INET,
        )
        self.token, self.port = secrets.token_hex(16), self.server.getsockname()[1]
        self.address = f"{host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()
        with writing(self.folder):
            write_json(self.file, {"host": host, "port": self.port,
                                   "token": self.token, "process": _process()})

    def _accept(self) -> None:
        assert self.server is not None
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._welcome, args=(Link(connection),), daemon=True).start()

    def _welcome(self, link: Link) -> None:
        hello = link.receive() or {}
        rank: int = hello.get("rank", 0)
        if hello.get("token") != self.token or rank not in range(1, self.world):
            link.close()
            return
        link.send(welcome=True)
        link.connection.settimeout(None)
        if link.receive() is None:  # it did not wait for the welcome, and will try again
            link.close()
            return
        with self.changed:
            if self.is_closed:  # it came while this rank left
                link.send(left=True)
                link.close()
                return
            self.links[rank], self.hosts[rank] = link, str(hello.get("host"))
            self.changed.notify_all()
            if self.verdict is not None:
                link.send(**self.verdict)
        self._read(rank, link)

    def _connect(self) -> None:
        """Connect with rank 0, if it is there."""
        with suppress(OSError), tempfile.TemporaryFile(dir=self.folder):
            pass  # NFS shows new names in a folder late, except after a change by this machine
        try:
            found = read_json(self.file)
            place, token = (found["host"], found["port"]), found["token"]
            link = Link(socket.create_connection(place, HANDSHAKE_S))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):  # not yet, or left
            return
        link.send(token=token, rank=self.rank, host=_process()[0])
        if link.receive() is None:
            link.close()
            return
        link.connection.settimeout(None)
        link.send(here=True)
        self.leader, self.hosts[0], self.links[0] = found["process"], found["process"][0], link
        threading.Thread(target=self._read, args=(0, link), daemon=True).start()

    def meet(self, limit_s: float) -> None:
        started = time.monotonic()
        notice, pause, has_asked = started + NOTICE_S[0], POLL_S, False
        while not self.has_met:
            if self.rank == 0 and len(self.links) == self.world - 1:
                self.has_met = True
                self._send_all(met=True)
                self.file.unlink(missing_ok=True)
                break
            if self.rank != 0 and not self.links:
                self._connect()
            if was_terminated():
                raise Hindered(f"ended by SIGTERM while it waited for {self._missing()}; if one "
                               "could not start, its log says why")
            if stop_requested() and (self.rank == 0 or not self.links):
                raise Stopped("on request, while it waited for other ranks")
            if stop_requested() and not has_asked:  # rank 0 decides: all may have met just now
                self.links[0].send(stop=True)
                has_asked = True
            with self.changed:
                if self.has_met or self._is_lost():
                    break
                self.changed.wait(pause)
            now, pause = time.monotonic(), min(1.0, 1.2 * pause)
            if now > started + limit_s:
                raise Hindered(f"{self._missing()}: not there after {limit_s / 60:.3g} min; see "
                               "their logs, or start them all at the same time")
            if now > notice:
                notice = now + NOTICE_S[1]
                log.warning("waiting for %s; gives up after %.3g min", self._missing(),
                            limit_s / 60)
        self._check()

    def _missing(self) -> str:
        """Return which ranks this one waits for, and where."""
        if self.rank != 0 and not self.links:
            return f"rank 0 of {self.world} ranks, which writes {self.file}"
        if self.rank != 0:
            return f"further ones of {self.world} ranks, with rank 0 on {self.hosts[0]}"
        missing = [rank for rank in range(1, self.world) if rank not in self.links]
        return (f"{len(missing)} of {self.world} ranks at {self.address} "
                f"(rank {', '.join(map(str, missing))})")

    def _is_lost(self) -> bool:
        return bool(self.failures or self._is_stopped())

    def _is_stopped(self) -> bool:
        return not self.has_met and bool(self.left or self.asked_to_stop)

    def _check(self) -> None:
        if self.failures:
            raise RankLost("another rank has failed")
        if self._is_stopped():
            raise Stopped("because another rank was stopped before all ranks had met")

    def agree(self, name: str, make: Callable[[], int]) -> int:
        if self.rank == 0:
            self.agreed[name] = make()
            self._send_all(agreed=self.agreed)
        with self.changed:
            while name not in self.agreed and not self.failures and not self.left:
                self.changed.wait(POLL_S)
        self._check()
        if name not in self.agreed:
            raise Stopped("because another rank was stopped")
        return self.agreed[name]

    # --- ending ---

    def _read(self, rank: int, link: Link) -> None:
        """Take another rank's messages until its connection ends."""
        while (message := link.receive()) is not None:
            with self.changed:
                self.has_met |= "met" in message
                self.asked_to_stop |= "stop" in message
                self.agreed |= message.get("agreed", {})
                self.left |= {rank} if "left" in message else set()
                self.changed.notify_all()
            if "failed" in message:
                self._learn(message.get("rank", rank), message["failed"])
        if rank not in self.left and self.links.get(rank) is link and not self.is_closed:
            error = f"its process on {self.hosts[rank]} ended without a message"
            self._learn(rank, {"error": error, "lines": [error], "hindered": True,
                               "is_cause": True, "is_death": True})

    def _learn(self, rank: int, failure: Failure) -> None:
        """Note the failure of another rank; after the first one this process ends."""
        with self.changed:
            is_first = not self.failures
            self.failures.setdefault(rank, failure)
            self.changed.notify_all()
        if not is_first:
            return
        for other, link in list(self.links.items()):
            if self.rank == 0 and other != rank:  # that one waits until the status is written
                link.send(rank=rank, failed=failure)
        if self.watched:
            threading.Thread(target=self._end_process, daemon=True).start()

    def _end_process(self) -> None:
        """End this process, unless its main thread ends by itself."""
        time.sleep(self.grace_s)
        self.claim_end("thread")
        try:
            failure = self.cause(0.0)
            assert failure is not None
            log.error("ends: %s", failure["error"])
            try:
                self.record(failure)
            except Exception as error:
                log.error("%s", error)
            self._send_all(rank=self._cause()[0], failed=self._cause()[1])
            if self.rank == 0:
                self.file.unlink(missing_ok=True)
            self._wait_for_rank_0(time.monotonic() + LINGER_S)
            sys.stdout.flush()
        finally:  # even if the output or the folder is on a full disk
            os._exit(1)

    def claim_end(self, by: Literal["main", "thread"]) -> None:
        """Let only one thread end this process; the other one sleeps until then."""
        with self.changed:
            self.ender = self.ender or by
        while self.ender != by:
            time.sleep(60.0)

    def _cause(self) -> tuple[int, Failure]:
        """Return the first failure of another rank that is not a consequence of an earlier one."""
        others = [(rank, one) for rank, one in self.failures.items() if rank != self.rank]
        return next((pair for pair in others if pair[1]["is_cause"]), others[0])

    def cause(self, wait_s: float) -> Failure | None:
        deadline = time.monotonic() + wait_s
        with self.changed:
            while not self.failures.keys() - {self.rank}:
                left = deadline - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    return None
        rank, failure = self._cause()
        entries = {key: value for key, value in failure.items() if not key.startswith("is_")}
        return {**entries, "error": f"rank {rank}: {failure['error']}"}

    def tell(self, failure: Failure) -> None:
        deadline = time.monotonic() + LINGER_S
        with self.changed:
            known = set(self.failures)
            self.failures.setdefault(self.rank, failure)
        if self.rank == 0:
            rank, first = (0, failure) if failure["is_cause"] or not known else self._cause()
            self._send_all(rank=rank, failed=first)
            self._wait(lambda: len(self.links) == self.world - 1, deadline)
            return
        while not self.links and time.monotonic() < deadline:
            self._connect()
            time.sleep(POLL_S)
        for link in self.links.values():
            link.send(failed=failure)
        self._wait_for_rank_0(deadline)

    def _wait_for_rank_0(self, deadline: float) -> None:
        """On another rank, wait until rank 0 has failed too or its process has ended."""
        if self.rank != 0:
            self._wait(lambda: 0 in self.failures or 0 in self.left, deadline)

    def _wait(self, check: Callable[[], bool], deadline: float) -> None:
        with self.changed:
            while not check() and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(left)

    def _send_all(self, **message: Any) -> None:
        """Send a message to all connected ranks; a failure also to those that connect later."""
        with self.changed:
            self.verdict = message if "failed" in message else self.verdict
            links = list(self.links.values()) if self.rank == 0 else []
        for link in links:
            link.send(**message)

    def close(self) -> None:
        """Leave the other ranks."""
        with self.changed:
            self.ender, self.is_closed = "main", True
        if self.rank not in self.failures:
            for link in self.links.values():
                link.send(left=True)
        if self.server is not None:
            with suppress(OSError):
                self.server.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
            self.server.close()
            self.file.unlink(missing_ok=True)
        for link in list(self.links.values()):
            link.close()

    def forget(self) -> None:
        """Close the connections in a forked child, which would keep them open after this rank's
        death."""
        for one in (self.server, *(link.connection for link in self.links.values())):
            if one is not None and (descriptor := one.detach()) >= 0:
                os.close(descriptor)


