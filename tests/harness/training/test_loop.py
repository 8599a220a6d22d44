"""The loop trains what plain torch does, and a run cut off ends as the undisturbed one."""

import json
import logging
import math
import os
import pty
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.images.transfer import to_device
from harness.runs.run import Run
from harness.runs.stopping import Stopped, request_stop, stop_on_signals
from harness.training import engine, loop, ranks
from tests.harness.training.test_engine import Settings

ROWS, RATE = 4, 0.05
WEIGHTS = {"fit": 1.0, "size": 0.25}
KEY = "validation.accuracy"
COUNTS = (5, 4, 5)
"""Steps of each epoch."""
SPOILT = {"nan": math.nan, "inf": 1e30, "huge": 100.0}
"""What a batch is multiplied by; 1e30 is too large to be squared."""


# --- what runs on the ranks ---


class Line(nn.Module):
    """Linear regression on the global batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(3, 2)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return self.losses(ranks.gather_rows(rows), ranks.gather_rows(self.layer(rows)))

    @staticmethod
    def losses(rows: Tensor, found: Tensor) -> dict[str, Tensor]:
        wanted = rows[:, :2] - 2 * rows[:, 1:]
        return {"fit": (found - wanted).square().mean(), "size": found.abs().mean()}


def rows_of(epoch: int, step: int) -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(100 * epoch + step))


class Cut(Exception):
    """What ends a process without a word: nothing after it is written."""


@dataclass
class Disturbance:
    """What happens just before the batch of this epoch and step (0 the first) is given out."""

    epoch: int = 0
    step: int = 0
    kind: str = "none"

    def strike(self, epoch: int, step: int) -> None:
        if (epoch, step) != (self.epoch, self.step):
            return
        if self.kind == "stop" and ranks.rank() == ranks.world_size() - 1:
            request_stop()
        if self.kind == "cut":
            raise Cut
        if self.kind == "wait":  # longer than a bar takes to be drawn again
            time.sleep(0.4)


def make_stage(name: str, disturbance: Disturbance, optimizer: str) -> loop.Stage:
    module = Line()
    groups = [{"params": [module.layer.weight]}, {"params": [module.layer.bias], "lr": 2 * RATE}]
    made = (
        torch.optim.SGD(groups, lr=RATE) if optimizer == "sgd"
        else torch.optim.Adam(groups, lr=RATE, weight_decay=1e-3, fused=True)
    )

    def batches(epoch: int, first: int) -> Iterator[Tensor]:
        for step in range(first, COUNTS[epoch - 1]):
            disturbance.strike(epoch, step)
            rows = rows_of(epoch, step)
            if (epoch, step) == (disturbance.epoch, disturbance.step):
                rows = rows * SPOILT.get(disturbance.kind, 1.0)
            yield to_device(rows[ranks.shard(ROWS)], ranks.device())

    return loop.Stage(
        name=name, objective=module, weights=WEIGHTS, optimizer=made,
        lr_factor=lambda epoch: 1 / epoch, epochs=len(COUNTS), batch=ROWS,
        steps=lambda epoch: COUNTS[epoch - 1], batches=batches,
        validate=lambda epoch: {"validation": {"accuracy": epoch / 10}} if epoch > 1 else {},
    )


def train(
    folder: str, *, disturbance: dict[str, Any] | None = None, stages: int = 1,
    optimizer: str = "adam", log_every: int = 2, save_every_s: float = math.inf,
    divergence: float = math.inf, **settings: Any,
) -> dict[str, Any]:
    """Train; returns how it ended, the weights, and what was reported."""
    run, reported = Run(Path(folder)), []
    done = Path(folder) / "done"
    recording = loop.Recording(
        log_every, save_every_s, divergence, reported.append, score_key=KEY, metrics=(KEY, "no.key")
    )
    ending, weights = "done", []
    with stop_on_signals():
        try:
            for number in range(1, stages + 1):
                if number < stages and done.exists():  # an experiment leaves its stages' results
                    continue
                disturbs = Disturbance(**disturbance or {}) if number == stages else Disturbance()
                stage = make_stage(f"stage{number}", disturbs, optimizer)
                module = loop.train(stage, run, Settings(**settings), recording)
                weights = torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()
                write_text(done, "")
        except (Stopped, UserError, Cut) as error:
            ending = f"{type(error).__name__}: {error}"
    return {"ending": ending, "weights": weights, "reported": reported}


def train_before_a_terminal(folder: str, columns: int) -> dict[str, Any]:
    """Train with a pseudo-terminal for stderr; returns what came there, lines of the log apart."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 1 << 16):
                shown.append(chunk)
        except OSError:  # how Linux says that the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    stderr, before = sys.stderr, dict(os.environ)
    os.environ.update(TERM="xterm", COLUMNS=str(columns), RANK="0")
    try:
        with os.fdopen(theirs, "w") as sys.stderr:
            lines = train_and_listen(folder, disturbance={"epoch": 2, "step": 3, "kind": "wait"})
    finally:
        sys.stderr = stderr
        os.environ.clear()
        os.environ.update(before)
    reader.join(10)
    os.close(ours)
    return {"shown": b"".join(shown).decode(), "lines": lines}


def train_and_listen(folder: str, **options: Any) -> list[str]:
    """Train; returns what the harness logs."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    listener = Listener()
    logging.getLogger("harness").addHandler(listener)
    loop.log.setLevel(logging.INFO)
    try:
        train(folder, **options)
    finally:
        logging.getLogger("harness").removeHandler(listener)
    return lines


def train_sending_meanwhile(folder: str, **options: Any) -> dict[str, Any]:
    """Train as on GPUs, where gradients are sent during the backward pass, a bucket at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "sends_meanwhile", lambda settings: True)
        patch.setattr(engine, "BUCKET", 4)  # numbers: else one bucket would hold them all
        return train(folder, **options)


# --- tests ---


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The metric log without what a clock had a say in."""
    entries = Run(folder).metrics()
    return [{k: v for k, v in entry.items() if k not in loop.MEASURED} for entry in entries]


def plain(accumulation: int = 1) -> tuple[list[list[dict[str, float]]], list[float]]:
    """The same training by SGD in torch alone: losses of each epoch's steps, and the weights."""
    module = Line()
    epochs = []
    for epoch, count in enumerate(COUNTS, start=1):
        losses = []
        for first in range(0, count, accumulation):
            window = range(first, min(first + accumulation, count))
            gradients = [torch.zeros_like(p) for p in module.parameters()]
            for step in window:
                module.zero_grad()
                rows = rows_of(epoch, step)
                parts = module.losses(rows, module.layer(rows))
                sum(WEIGHTS[name] * part for name, part in parts.items()).backward()
                losses.append({name: part.item() for name, part in parts.items()})
                for total, parameter in zip(gradients, module.parameters(), strict=True):
                    total += parameter.grad / len(window)
            with torch.no_grad():
                for factor, total, p in zip((1, 2), gradients, module.parameters(), strict=True):
                    p -= factor * RATE / epoch * total
        epochs.append(losses)
    return epochs, torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()


@pytest.mark.parametrize(("accumulation", "zero"), [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2)])
def test_training_is_that_of_plain_torch_with_gradients_averaged_over_the_accumulated_steps(
    one_rank: Any, two_ranks: Any, accumulation: int, zero: int, tmp_path: Path
) -> None:
    # epochs of 5 and 4 steps: the last window is shorter, and its mean is over what it has
    _, expected = plain(accumulation)
    for name, call in (("one", one_rank), ("two", two_ranks)):
        results = call(
            train, folder=tmp_path / name, optimizer="sgd", accumulation=accumulation, zero=zero
        )
        for result in results:
            assert result["ending"] == "done"
            np.testing.assert_allclose(result["weights"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero", [1, 2])
def test_gradients_sent_during_the_backward_pass_are_those_sent_after_it(
    two_ranks: Any, zero: int, tmp_path: Path
) -> None:
    options = {"zero": zero, "accumulation": 2}
    expected = two_ranks(train, folder=tmp_path / "after", **options)
    found = two_ranks(train_sending_meanwhile, folder=tmp_path / "meanwhile", **options)
    assert [one["weights"] for one in found] == [one["weights"] for one in expected]
    assert log_of(tmp_path / "meanwhile") == log_of(tmp_path / "after")


def test_losses_are_recorded_by_name_as_steps_and_as_means_of_epochs(
    one_rank: Any, tmp_path: Path
) -> None:
    (result,) = one_rank(train, folder=tmp_path, optimizer="sgd", log_every=2)
    log = log_of(tmp_path)
    epochs, _ = plain()
    for line in log:
        assert line["loss"] == pytest.approx(sum(WEIGHTS[k] * v for k, v in line["losses"].items()))
    for epoch, losses in enumerate(epochs, start=1):
        before = sum(COUNTS[: epoch - 1])
        # every second step of the stage, but an epoch's last, which its own line stands for
        logged = [(n, parts) for n, parts in enumerate(losses[:-1], before + 1) if n % 2 == 0]
        *steps, last = [line for line in log if line["epoch"] == epoch]
        assert [(s["kind"], s["step"]) for s in steps] == [("step", n) for n, _ in logged]
        assert [s["losses"] for s in steps] == [pytest.approx(parts) for _, parts in logged]
        assert last["kind"] == "epoch"
        assert last["losses"] == {
            name: pytest.approx(math.fsum(parts[name] for parts in losses) / len(losses))
            for name in WEIGHTS
        }
        assert last["step"] == sum(COUNTS[:epoch])
        assert {line["lr"] for line in [*steps, last]} == {RATE / epoch}
        assert last.get("validation") == ({"accuracy": epoch / 10} if epoch > 1 else None)
    assert [line["step"] for line in result["reported"]] == [5, 9, 14]
    assert all(line["images_per_s"] > 0 for line in result["reported"])


@pytest.mark.parametrize(("kind", "named"), [("nan", "fit, size"), ("inf", "fit")])
def test_a_loss_that_is_not_finite_stops_with_its_name_and_step(
    two_ranks: Any, kind: str, named: str, tmp_path: Path
) -> None:
    disturbance = {"epoch": 2, "step": 2, "kind": kind}
    results = two_ranks(train, folder=tmp_path, disturbance=disturbance)
    for result in results:
        assert result["ending"] == (
            f"UserError: stage1, epoch 2, step 3: {named} is {kind}; lower the learning rate, "
            "or use engine.precision=fp32"
        )
    # the weights of the last good epoch are kept
    assert newest(tmp_path) == "stage1-0002-000000"


@pytest.mark.parametrize("resumed", [False, True])
def test_a_loss_far_above_the_first_epochs_ends_the_training_on_all_ranks(
    two_ranks: Any, resumed: bool, tmp_path: Path
) -> None:
    options = {"folder": tmp_path, "divergence": 10.0, "log_every": 1}
    if resumed:  # the first epoch's mean is the one before the interruption
        two_ranks(train, **options, disturbance={"epoch": 2, "step": 1, "kind": "cut"})
    huge = {"epoch": 2, "step": 2, "kind": "huge"}
    results = two_ranks(train, **options, disturbance=huge)
    first = next(line["loss"] for line in log_of(tmp_path) if line["kind"] == "epoch")
    for result in results:
        assert result["ending"].startswith(
            "UserError: stage1, epoch 2, step 3: diverged: the loss is "
        )
        assert f"over 10 times the {first:.4g} of the first epoch; the largest part is fit (" in (
            result["ending"]
        )
    (result, _) = two_ranks(train, **{**options, "divergence": 1e9}, disturbance=huge)
    assert result["ending"] == "done"


@pytest.fixture(scope="module")
def undisturbed(one_rank: Any, two_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights and log of two stages that nothing disturbed: on one rank, and on two with ZeRO 2."""
    found = {}
    for name, call, zero in (("one", one_rank, 0), ("two", two_ranks, 2)):
        folder = tmp_path_factory.mktemp(name)
        results = call(train, folder=folder, stages=2, zero=zero)
        found[name] = call, zero, results[0]["weights"], log_of(folder)
    return found


@pytest.mark.parametrize("world", ["one", "two"])
@pytest.mark.parametrize(
    ("disturbances", "endings"),
    [
        ([("stop", 1, 0)], ["Stopped: on request in stage2, epoch 1, after step 1"]),
        ([("stop", 3, 4)], ["done"]),
        ([("cut", 1, 3)], ["Cut: "]),
        ([("cut", 3, 2)], ["Cut: "]),
        (
            [("stop", 2, 1), ("cut", 2, 3), ("stop", 2, 3), ("cut", 3, 4)],
            ["Stopped: on request in stage2, epoch 2, after step 2", "Cut: ",
             "Stopped: on request in stage2, after epoch 2", "Cut: "],
        ),
    ],
)
def test_a_run_that_was_cut_off_ends_as_the_undisturbed_one_to_the_last_digit(
    undisturbed: Any, world: str, disturbances: list[Any], endings: list[str], tmp_path: Path
) -> None:
    call, zero, weights, log = undisturbed[world]
    for (kind, epoch, step), ending in zip(disturbances, endings, strict=True):
        disturbance = {"kind": kind, "epoch": epoch, "step": step}
        results = call(train, folder=tmp_path, disturbance=disturbance, stages=2, zero=zero)
        assert {r["ending"] for r in results} == {ending}
    results = call(train, folder=tmp_path, stages=2, zero=zero)
    assert [r["weights"] for r in results] == [weights] * len(results)
    assert log_of(tmp_path) == log


@pytest.mark.parametrize("world", ["one", "two"])
def test_a_run_cut_off_within_an_epoch_goes_on_from_the_checkpoint_made_there(
    undisturbed: Any, world: str, tmp_path: Path
) -> None:
    call, zero, weights, log = undisturbed[world]
    options = {"folder": tmp_path, "stages": 2, "zero": zero, "save_every_s": 0.0}
    call(train, disturbance={"kind": "cut", "epoch": 2, "step": 3}, **options)
    assert newest(tmp_path) == "stage2-0002-000003"
    assert call(train, **options)[0]["weights"] == weights
    assert log_of(tmp_path) == log


@pytest.mark.parametrize("world", ["one", "two"])
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before_to_the_same_end(
    undisturbed: Any, world: str, tmp_path: Path
) -> None:
    call, zero, weights, log = undisturbed[world]
    options = {"folder": tmp_path, "stages": 2, "zero": zero, "save_every_s": 0.0}
    call(train, disturbance={"kind": "cut", "epoch": 1, "step": 1}, **options)
    (Run(tmp_path).checkpoints / newest(tmp_path) / "weights.safetensors").write_bytes(b"half")
    assert call(train, **options)[0]["weights"] == weights
    assert log_of(tmp_path) == log


def newest(folder: Path) -> str:
    """The checkpoint that a run would go on from."""
    return str(json.loads((Run(folder).checkpoints / "latest.json").read_text())["name"])


def test_a_stop_waits_until_the_accumulated_gradients_are_used(
    one_rank: Any, tmp_path: Path
) -> None:
    (whole,) = one_rank(train, folder=tmp_path / "whole", accumulation=2)
    disturbance = {"kind": "stop", "epoch": 1, "step": 0}
    (stopped,) = one_rank(
        train, folder=tmp_path / "run", accumulation=2, disturbance=disturbance
    )
    assert stopped["ending"] == "Stopped: on request in stage1, epoch 1, after step 2"
    (resumed,) = one_rank(train, folder=tmp_path / "run", accumulation=2)
    assert resumed["weights"] == whole["weights"]
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")


def test_a_stage_that_is_done_is_only_loaded(one_rank: Any, tmp_path: Path) -> None:
    (first,) = one_rank(train, folder=tmp_path)
    log = Run(tmp_path).metrics_file.read_text()
    (again,) = one_rank(train, folder=tmp_path)
    assert again["weights"] == first["weights"]
    assert again["reported"] == []
    assert [json.loads(line) for line in log.splitlines()] == Run(tmp_path).metrics()


def test_a_run_whose_checkpoints_are_gone_does_not_start_over_in_silence(
    one_rank: Any, tmp_path: Path
) -> None:
    one_rank(train, folder=tmp_path)
    before = log_of(tmp_path)
    shutil.rmtree(Run(tmp_path).checkpoints)
    (result,) = one_rank(train, folder=tmp_path)
    assert result["ending"] == (
        f"UserError: {Run(tmp_path).checkpoints}: there is no checkpoint, but metrics.jsonl "
        f"has 3 epochs; restore one, or delete the folder {tmp_path} to start over"
    )
    assert log_of(tmp_path) == before


def test_a_first_attempt_cut_off_before_any_checkpoint_leaves_no_lines_behind(
    one_rank: Any, tmp_path: Path
) -> None:
    (cut,) = one_rank(
        train, folder=tmp_path, disturbance={"kind": "cut", "epoch": 1, "step": 4}
    )
    assert cut["ending"] == "Cut: "
    assert len(log_of(tmp_path)) == 2
    with Run(tmp_path).metrics_file.open("a") as log:
        log.write('{"kind": "st')  # and the kill came in the middle of a line
    one_rank(train, folder=tmp_path)
    one_rank(train, folder=tmp_path.with_name("whole"))
    assert log_of(tmp_path) == log_of(tmp_path.with_name("whole"))


# --- what is seen meanwhile ---


def plain_text(shown: str) -> list[str]:
    """Return the text on a terminal, without control sequences, by drawn line."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))


def test_a_bar_shows_losses_speed_and_what_is_left_of_the_epoch_and_of_the_stage(
    one_rank: Any, tmp_path: Path
) -> None:
    (seen,) = one_rank(train_before_a_terminal, folder=tmp_path, columns=140)
    (line,) = {t for t in plain_text(seen["shown"]) if "epoch 2/3" in t and " 3/4 " in t}
    match = re.search(
        r"epoch 2/3 \S+ +3/4 -?[\d:-]+ loss (\S+), stage \d+ s left, \d+ images/s, "
        r"fit (\S+) size (\S+)", line,
    )
    assert match, line
    (logged,) = [s for s in log_of(tmp_path) if (s["kind"], s["step"]) == ("step", 5 + 3)]
    parts = logged["losses"]
    assert match.groups() == (
        f"{logged['loss']:.4f}", f"{parts['fit']:.3g}", f"{parts['size']:.3g}"
    )


def test_a_narrow_terminal_shows_the_loss_and_what_is_left_and_cuts_off_the_rest(
    one_rank: Any, tmp_path: Path
) -> None:
    (seen,) = one_rank(train_before_a_terminal, folder=tmp_path, columns=72)
    (line,) = {t for t in plain_text(seen["shown"]) if "epoch 2/3" in t and " 3/4 " in t}
    assert re.search(r" loss \S+, stage \d+ s left,", line)
    assert len(line) <= 72
    assert "size" not in line


def test_the_log_tells_at_each_epoch_but_the_last_how_long_the_stage_will_take(
    one_rank: Any, tmp_path: Path
) -> None:
    (logged,) = one_rank(train_and_listen, folder=tmp_path)
    *lines, last = logged
    assert re.fullmatch(r"stage1: peak memory \d\.\d\d GB a rank", last)
    assert len(lines) == len(COUNTS)
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"stage1 epoch {number}/3 loss ")
        assert bool(re.search(r", \d+ s left$", line)) == (number < len(COUNTS))
    assert " validation.accuracy 0.2000, " in lines[1]
