"""`make gpu` on an emulated GPU: it runs through, and what it finds is reported."""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from svll.evaluation.engine.products import Products
from tests.benchmarks.evaluation import Size
from tests.benchmarks.peaks import peak
from tests.benchmarks.products import covered
from tests.benchmarks.sizes import TINY
from tests.benchmarks.timing import Row
from tests.gpu import __main__ as command
from tests.gpu import (
    checks,
    checks_machine,
    checks_pixels,
    checks_ranking,
    checks_speed,
    checks_training,
    cpu_process,
)
from tests.gpu.checks import Extent, Finding, Part
from tests.gpu.emulator import emulated
from tests.gpu.runs import TINY as TINY_RUN

RANKED = Size("", 24, 60, 8, 3)


def smallest(world: str, tests: Path) -> Extent:
    """Return the least that still carries out every check."""
    settings = tuple(word for word in TINY_RUN if not word.startswith("run."))
    return Extent(TINY, RANKED, 8, (f"data.root={world}", *settings), (checks.RUNS[0],),
                  (str(tests),), is_timed=False)


def rankings() -> dict[tuple[str, bool], Any]:
    """Return what each case of the ranking gives here."""
    return {(kind, rerank): checks_ranking.ranked(kind, RANKED, rerank)
            for kind, rerank in checks_ranking.CASES}


def finished(result: Any) -> Future[Any]:
    found: Future[Any] = Future()
    found.set_result(result)
    return found


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A file with a test that is marked `gpu`."""
    file = tmp_path / "test_marked.py"
    file.write_text("import pytest\n\n@pytest.mark.gpu\ndef test_it():\n    pass\n")
    return file


@pytest.mark.slow
def test_the_whole_command_runs_through_on_an_emulated_gpu(
    world, marked, gpus, tmp_path, monkeypatch, capsys
):
    extent = smallest(world, marked)
    expected = {
        ("trained",): checks_training.trained(
            str(tmp_path / "cpu"), [*extent.settings, "engine.precision=fp32"]
        ),
        **{("ranked", *case): found for case, found in rankings().items()},
    }

    def known(work: Any, *arguments: Any) -> Future[Any]:
        """Give what was computed before there was an emulator, or compute it on the CPU."""
        words = [word for word in arguments if isinstance(word, str | bool)]
        key = (work.__name__, *(words if work.__name__ == "ranked" else ()))
        return finished(expected[key] if key in expected else work(*arguments))

    for module in (checks_training, checks_ranking):
        monkeypatch.setattr(module, "begun_on_cpu", known)
    gpus(1)
    gc.freeze()  # benchmarks collect garbage before they measure: half a second each
    try:
        with emulated():
            status = command.main(
                run=lambda part, *_: list(checks.findings(part, extent)), results=tmp_path / "gpu"
            )
    finally:
        gc.unfreeze()
    out = capsys.readouterr().out
    assert status == 0, out
    [file] = (tmp_path / "gpu").glob("*.json")
    kept = json.loads(file.read_text())
    found = {(one["part"], one["name"]): one for one in kept["findings"]}
    assert kept["passed"]
    assert {part for part, _ in found} == set(checks.PARTS)
    assert [one for one in found if found[one]["passed"] is None] == [("ranks", "two ranks")]
    assert "it takes two" in found["ranks", "two ranks"]["why"]
    assert found["tests", "tests marked gpu"]["found"].startswith("1 passed")
    run = found["training", "tiny run, fp32, the CPU's views"]["numbers"]
    assert (run["first"], run["epochs"], run["mAP"]) == (0, 0, 0)
    assert sum("ours" in one["numbers"] for one in kept["findings"]) == 7
    assert "unknown" in out  # the emulated GPU's peak


# --- what a check finds ---


def of_toys(monkeypatch: pytest.MonkeyPatch, *toys: Any) -> list[Finding]:
    """Return what some checks find as a part."""
    monkeypatch.setitem(sys.modules, "tests.gpu.toys", SimpleNamespace(CHECKS={"toys": toys}))
    monkeypatch.setitem(checks.PARTS, "toys", Part("toys", 1))
    return list(checks.findings("toys", Extent()))


def test_a_check_that_raises_is_one_failed_finding_and_the_others_go_on(
    monkeypatch, capsys
):
    def breaks_down(_: Extent) -> Iterator[Finding]:
        yield Finding("the first half", True)
        raise ValueError("no such kernel\nat some line")

    monkeypatch.setattr(checks, "torch_can_use_the_gpu", lambda _: ())
    found = of_toys(monkeypatch, breaks_down, lambda _: [Finding("another", True)])
    assert [(one.part, one.name, one.passed, one.why) for one in found] == [
        ("toys", "the first half", True, ""),
        ("toys", "breaks down", False, "ValueError: no such kernel"),
        ("toys", "another", True, ""),
    ]
    assert "at some line" in capsys.readouterr().err


def test_nothing_is_checked_where_torch_cannot_use_the_gpu(monkeypatch):
    monkeypatch.setattr("harness.training.ranks.init_ranks", lambda: None)
    [found] = of_toys(monkeypatch, lambda _: [Finding("on the CPU", True)])
    assert (found.name, found.passed) == (checks.UNUSABLE, False)
    assert "GPU" in found.why


@pytest.mark.parametrize(("change", "why"), [
    ({}, ""), ({"first": {"stage1 i2t": 2.001}}, "stage1 i2t: 2.001 instead of 2"),
    ({"first": {"stage1 i2t": float("nan")}}, "stage1 i2t: nan instead of 2"),
    ({"epochs": {"stage2 1 id": 4.1}}, "stage2 1 id: 4.1 instead of 4"),
    ({"mAP": 0.3}, "mAP 0.3000 instead of 0.5000"),
])
def test_a_run_that_is_not_the_cpus_fails_with_the_numbers_that_differ(change, why):
    expected = {"first": {"stage1 i2t": 2.0}, "epochs": {"stage2 1 id": 4.0}, "mAP": 0.5}
    found = checks_training.compared(
        "run", expected | change, expected, checks_training.EXACT
    )
    assert (found.passed, found.why) == (not why, why)


def test_ranking_with_a_product_that_is_off_is_found(monkeypatch):
    expected = rankings()

    def begun(_: Any, kind: str, size: Size, rerank: bool) -> Future[Any]:
        return finished(expected[kind, rerank])

    def off(*given: Any) -> Any:
        return 1.01 * multiply(*given)

    multiply = Products.__call__
    monkeypatch.setattr(checks_ranking, "begun_on_cpu", begun)
    assert [one.passed for one in checks_ranking.ranking(Extent(ranked=RANKED))] == [True] * 4
    monkeypatch.setattr(Products, "__call__", off)
    found = {one.name: one for one in checks_ranking.ranking(Extent(ranked=RANKED))}
    assert not found["ranking, random features"].passed
    assert "mAP" in found["ranking, random features"].why


def test_decoders_that_differ_fail_by_file_and_the_others_are_compared(monkeypatch):
    pixels = {"a": np.zeros((2, 2, 3), np.uint8), "b": np.full((2, 2, 3), 9, np.uint8),
              "c": np.zeros((2, 3, 3), np.uint8)}

    def decoder(device: torch.device) -> Any:
        def decoded(path: str) -> Any:
            if device.type == "cuda" and path == "broken":
                raise RuntimeError("nvJPEG error 5\nmore")
            return pixels[path] if device.type == "cuda" else pixels["a"]

        return decoded

    monkeypatch.setattr(checks_pixels, "_decoder", decoder)
    monkeypatch.setattr("harness.training.ranks.device", lambda: torch.device("cuda:0"))
    found = checks_pixels.compared("JPEGs", ["broken", "a", "b", "c"], checks_pixels.DECODED)
    assert not found.passed
    assert found.why == ("over 8, mean 1: broken: nvJPEG error 5; b: 9, mean 9.00; "
                         "c: (2, 3, 3) instead of (2, 2, 3)")
    assert found.numbers == {"largest": 9, "mean": 4.5, "files": 4}


@pytest.mark.parametrize(("ours", "must_be_faster", "passed"), [
    (1.0, True, True), (1.04, True, True), (1.1, True, False), (1.1, False, True),
])
def test_a_row_that_is_slower_than_the_released_way_fails(ours, must_be_faster, passed):
    row = Row("step", "s", ours, 1.0, None)
    found = checks_speed.finding_of(row, must_be_faster=must_be_faster)
    assert (found.passed, "slower" in found.why) == (passed, not passed)


def test_numbers_of_the_cpu_come_from_a_process_that_sees_no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    cpu_process._process.cache_clear()
    try:
        assert cpu_process.begun_on_cpu(os.getenv, "CUDA_VISIBLE_DEVICES").result() == ""
    finally:
        cpu_process._process().shutdown()
        cpu_process._process.cache_clear()


# --- the command ---


def run_as_part(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str, limit_s: float) -> Any:
    """Run a program as the part `views`, and return its findings."""
    monkeypatch.setattr(command, "command", lambda _, lines: [
        sys.executable, "-c", f"import os, sys, time; lines = {str(lines)!r}\n{program}"
    ])
    return command.in_a_process("views", limit_s, folder / "views.txt")


FIRST = "open(lines, 'w').write('{\"name\": \"first\", \"passed\": true}\\n{\"name\": \"sec')\n"


@pytest.mark.parametrize(("end", "limit_s", "why"), [
    ("time.sleep(60)", 0.5, "stopped after 0 s"), ("os.abort()", 20, "ended by SIGABRT"),
    ("sys.exit('no driver')", 20, "ended with 1: no driver; see"),
])
def test_a_part_that_does_not_end_well_keeps_what_it_found_and_says_how_it_ended(
    end, limit_s, why, tmp_path, monkeypatch
):
    started = time.monotonic()
    first, last = run_as_part(monkeypatch, tmp_path, FIRST + end, limit_s)
    assert time.monotonic() - started < 15
    assert (first.name, first.passed) == ("first", True)
    assert (last.part, last.passed) == ("views", False)
    assert why in last.why


def test_what_a_stopped_part_has_started_is_ended_with_it(tmp_path, monkeypatch):
    program = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    run_as_part(monkeypatch, tmp_path, program, 1.0)
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and status.exists():
        if "State:\tZ" in status.read_text():
            break
        time.sleep(0.05)
    else:
        assert not status.exists()


def test_numbers_that_are_not_finite_are_kept_as_none(monkeypatch):
    monkeypatch.setattr(checks, "torch_can_use_the_gpu", lambda _: ())
    numbers = {"a": float("nan"), "b": float("inf"), "c": 1.0, "d": "text"}
    [found] = of_toys(monkeypatch, lambda _: [Finding("toy", False, numbers=numbers)])
    assert found.numbers == {"a": None, "b": None, "c": 1.0, "d": "text"}


def test_a_failed_test_that_is_marked_is_named(marked):
    marked.write_text(marked.read_text().replace("pass", "assert False"))
    [found] = checks_machine.the_tests(Extent(tests=(str(marked),)))
    assert (found.passed, found.found[:8]) == (False, "1 failed")
    assert "test_it - assert False" in found.why


def test_files_with_marked_tests_are_found_and_no_others(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    for name, text in {
        "test_a.py": "@pytest.mark.gpu\ndef test_it(): ...", "test_b.py": "'@pytest.mark.gpu'",
        "test_c.py": "pytestmark = pytest.mark.gpu\n",
    }.items():
        (tmp_path / "tests" / name).write_text(text)
    monkeypatch.setattr(checks_machine, "ROOT", tmp_path)
    assert checks_machine._marked() == ("tests/test_a.py", "tests/test_c.py")


def test_a_failed_check_ends_the_command_with_1_and_is_in_the_table(gpus, tmp_path, capsys):
    gpus(1)
    found = [Finding("a", True, part="views"), Finding("b", False, why="too large", part="views")]
    assert command.main("views", run=lambda *_: found, results=tmp_path) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "too large" in out
    assert "1 passed, 1 failed" in out


def test_no_further_part_is_run_where_torch_cannot_use_the_gpu(gpus, tmp_path):
    gpus(1)
    ran = []

    def run(part: str, *_: Any) -> list[Finding]:
        ran.append(part)
        return [Finding(checks.UNUSABLE, False, part=part)]

    assert command.main(run=run, results=tmp_path) == 1
    assert ran == ["machine"]


def test_without_a_gpu_the_command_says_so_and_ends_with_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.main(results=tmp_path) == 2
    assert "no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_ends_the_command_with_2_and_the_parts_are_named(tmp_path, capsys):
    assert command.main("speed", results=tmp_path) == 2
    assert "parts: all, machine, decoders, views" in capsys.readouterr().err


def test_all_parts_on_one_gpu_end_within_eight_minutes():
    assert sum(part.limit_s for name, part in checks.PARTS.items() if name != "ranks") <= 480


# --- speed ---


def test_time_in_which_streams_compute_at_once_counts_once():
    assert covered([(30, 40), (0, 10), (5, 20), (6, 8)]) == 30


@pytest.mark.parametrize(("name", "precision", "stated"), [
    ("NVIDIA H100 80GB HBM3", "bf16", 989.5e12), ("NVIDIA H100 PCIe", "bf16", 756.5e12),
    ("NVIDIA A100-SXM4-80GB", "fp16", 312e12), ("Tesla V100-SXM2-32GB", "bf16", None),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None), ("NVIDIA H100 80GB HBM3", "fp32", None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None), ("NVIDIA RTX 9999", "bf16", None),
])
def test_the_peak_is_that_of_the_very_gpu_or_unknown(name, precision, stated):
    assert peak(name, precision) == stated
