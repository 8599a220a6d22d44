"""What runs share is made once, whoever comes first and however they end."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.runs.stopping import Stopped, stop_on_signals
from svll.reuse import cache
from svll.reuse.cache import make_once, shared_json

OTHER = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    from svll.reuse import cache

    def make(path):
        def begin():
            print("making", flush=True)
            sys.stdin.readline()
            path.write_text("by the other process")

        cache.make_once(path, begin)

    def fork(action):
        child = os.fork()
        if not child:
            action()
            os._exit(0)
        return child

    def race(folder):
        signal.alarm(120)  # nobody waits for ever
        cache.POLL_S = 0.002
        rounds, contestants = 12, 5
        for number in range(rounds):
            path = folder / f"{number}.json"
            if number % 2:  # every second one finds the lock of a maker that died
                killed = fork(lambda: cache.make_once(path, lambda: os._exit(9)))
                os.waitpid(killed, 0)
                assert path.with_name(f"{path.name}.lock").exists()
            start = time.time() + 0.05

            def make():
                (folder / f"{number}.made.{os.getpid()}").touch()
                time.sleep(0.02)
                path.write_text("{}")

            def contest():
                time.sleep(max(0, start - time.time()))
                cache.make_once(path, make)
                assert path.exists()

            children = [fork(contest) for _ in range(contestants)]
            assert [os.waitpid(child, 0)[1] for child in children] == [0] * contestants
        signal.alarm(0)

    while line := sys.stdin.readline():
        word, _, path = line.rstrip("\\n").partition(" ")
        {"make": make, "race": race}[word](Path(path))
        print("done", flush=True)
""")


class Other:
    """Another process that executes commands; one for all tests, as it starts slowly."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def others() -> Iterator[list[Other]]:
    """All other processes."""
    found: list[Other] = []
    yield found
    for other in found:
        other.end()


@pytest.fixture
def other(others: list[Other]) -> Other:
    """A process that is alive."""
    if not others or others[-1].process.poll() is not None:
        others.append(Other())
    return others[-1]


@pytest.fixture
def maker(other: Other, tmp_path: Path) -> Other:
    """Another process that is making `shared.json` and continues on command."""
    other.send(f"make {tmp_path / 'shared.json'}")
    assert other.answer() == "making"
    return other


class Waiting:
    """A second run, in another thread, that needs the same file."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, 0
        self.thread = threading.Thread(target=make_once, args=(path, self._make))
        self.thread.start()

    def _make(self) -> None:
        self.calls += 1
        self.path.write_text("by this process")

    def end(self) -> str:
        """Wait for its end and return what the file holds by then."""
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()
        return self.path.read_text()


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "POLL_S", 0.02)


# --- making once ---


def test_of_two_processes_one_makes_the_file_and_the_other_waits_for_it(
    tmp_path: Path, maker: Other
) -> None:
    waiting = Waiting(tmp_path / "shared.json")
    time.sleep(0.3)
    assert waiting.thread.is_alive()
    maker.send("go on")
    assert waiting.end() == "by the other process"
    assert waiting.calls == 0
    assert maker.answer() == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["shared.json"]  # no lock is left


def test_of_many_that_start_together_exactly_one_makes_the_file(
    tmp_path: Path, other: Other
) -> None:
    other.send(f"race {tmp_path}")
    assert other.answer() == "done"
    made = [path.name.split(".")[0] for path in tmp_path.glob("*.made.*")]
    assert sorted(made, key=int) == [str(number) for number in range(12)]


def test_a_run_that_waits_for_another_can_be_stopped(tmp_path: Path, maker: Other) -> None:
    path = tmp_path / "shared.json"
    with stop_on_signals():
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(Stopped, match=r"while waiting for shared\.json \(process \d+ on "):
            make_once(path, lambda: pytest.fail("the other process makes it"))
    maker.send("go on")
    assert maker.answer() == "done"
    assert path.read_text() == "by the other process"


def test_a_maker_that_is_killed_is_noticed_and_replaced(tmp_path: Path, maker: Other) -> None:
    waiting = Waiting(tmp_path / "shared.json")
    time.sleep(0.3)
    assert waiting.thread.is_alive()
    maker.end()
    assert waiting.end() == "by this process"
    assert waiting.calls == 1


def test_a_file_that_was_finished_while_its_lock_was_taken_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shared.json"

    @contextmanager
    def finished_just_before(lock: Path) -> Iterator[None]:
        path.write_text("by another")
        yield

    monkeypatch.setattr(cache, "held_lock", finished_just_before)
    make_once(path, lambda: write_text(path, "again"))
    assert path.read_text() == "by another"


def test_a_maker_that_fails_leaves_the_next_one_free_to_try(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"

    def fail() -> None:
        raise UserError("no space")

    with pytest.raises(UserError, match="no space"):
        make_once(path, fail)
    make_once(path, lambda: write_text(path, "second"))
    assert path.read_text() == "second"


def test_what_is_there_is_never_made_again(tmp_path: Path) -> None:
    path = tmp_path / "below" / "shared.json"
    assert shared_json(path, lambda: {"value": 1}) == {"value": 1}
    assert shared_json(path, lambda: {"value": 2}) == {"value": 1}
    assert json.loads(path.read_text()) == {"value": 1}


@pytest.mark.parametrize("text", ["", "{", "5", '{"mAP": NaN}', "\0" * 9])
def test_a_damaged_mapping_is_made_again_with_a_warning(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert shared_json(path, lambda: {"a": 1}) == {"a": 1}
    assert "a.json: is damaged, so it is made again" in caplog.text
    assert shared_json(path, lambda: {"a": 2}) == {"a": 1}
