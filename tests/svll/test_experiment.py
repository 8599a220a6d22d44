"""One run, whole: on the tiny world, with the shipped tiny CLIP."""

import io
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import svll.features.extract
import svll.stage2
from harness.base.errors import UserError
from harness.images.loader import ImageLoader
from harness.runs import stopping
from harness.runs.execute import execute
from harness.runs.run import Run
from harness.runs.stopping import Stopped
from harness.training import loop, ranks
from harness.training.checkpoints import latest
from svll.base.feature_file import read_features
from svll.evaluation import KReciprocal, evaluate_ranking
from svll.evaluation.engine.shared_work import RANKING
from svll.experiment import run as experiment
from svll.runs.make_features import run_features
from tests.tiny_run import tiny_run
from tests.wandb_files import records, rows, summary

SMALL = (
    "data.height=32", "data.width=16", "data.world.test_identities=4", "run.tensorboard=false",
    "run.log_every=2",
)
BRIEF = (
    # without self-supervision, half-precision features, scored as a whole and re-ranked; and too
    # fast, so that the first epoch is the best
    "stage1.lss_weight=0", "stage2.vss_weight=0", "stage2.lr=1e-3", "stage1.epochs=1",
    "evaluation.feature_dtype=float16", "evaluation.protocol=all_gallery",
    "evaluation.rerank=true", "evaluation.k1=7", "evaluation.k2=3", "evaluation.weight=0.5",
)


def make_run(runs: Path, *overrides: str) -> Run:
    return tiny_run(runs / "test", *SMALL, *overrides)


def numbers(run: Run) -> list[dict]:
    """The metric log without what the clock says."""
    return [{k: v for k, v in line.items() if k not in loop.MEASURED} for line in run.metrics()]


def result(run: Run) -> dict:
    return {k: v for k, v in (run.result() or {}).items() if k != "seconds"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(runs: Path) -> Run:
    """A run with all curves; others, with which it is compared, have none."""
    run = make_run(runs, "run.tensorboard=true", "run.wandb=persons")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        experiment(run)
    return run


@pytest.fixture(scope="module")
def brief(runs: Path, finished: Run) -> Run:
    """A run of one epoch a stage, unlike the other in all that its settings say."""
    run = make_run(runs, *BRIEF, "stage2.epochs=1")
    experiment(run)
    return run


@pytest.fixture
def alone(finished: Run, tmp_path: Path) -> Path:
    """A folder for runs that share no stage 1 with others, only the drawn images."""
    data = Path("cache/data")
    (tmp_path / data).parent.mkdir()
    (tmp_path / data).symlink_to(finished.folder.parents[1] / data)
    return tmp_path


def test_a_run_logs_every_epoch_of_both_stages_and_each_loss(finished: Run) -> None:
    epochs = [line for line in finished.metrics() if line["kind"] == "epoch"]
    assert [(line["stage"], line["epoch"]) for line in epochs] == [
        ("stage1", 1), ("stage1", 2), ("stage2", 1), ("stage2", 2),
    ]
    assert set(epochs[0]["losses"]) == {"i2t", "t2i", "lss"}
    assert set(epochs[-1]["losses"]) == {"id", "triplet", "i2t", "vss"}
    weights = {"id": 0.25, "triplet": 1.0, "i2t": 1.0, "vss": 0.8}
    total = sum(weights[name] * value for name, value in epochs[-1]["losses"].items())
    assert epochs[-1]["loss"] == pytest.approx(total, rel=1e-5)
    assert 0 < epochs[-1]["validation"]["mAP"] <= 1
    for line in epochs[:2]:  # stage 1 tells how good its prompts are
        assert 0 < line["prompts"]["mAP"] <= 1
        assert -2 < line["prompts"]["margin"] < 2
    assert epochs[0]["prompts"] != epochs[1]["prompts"]
    assert all(line["memory_gb"] > 0.1 for line in epochs)


def test_a_run_convolves_in_full_float32(finished: Run) -> None:
    kind: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    assert kind.fp32_precision in ("none", "ieee")


def numbers_in(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every number in nested JSON, by the path to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers_in(item, f"{name}/{key}")
    elif isinstance(value, int | float):
        yield name, value


def test_tensorboard_and_w_and_b_get_every_number_of_the_metric_log(finished: Run) -> None:
    drawn: dict[str, list[tuple[int, float]]] = {}
    lines = finished.metrics()
    for line in lines:
        for key in line.keys() - {"step"}:
            start = key if key in ("prompts", "validation") else f"{line['stage']}/{key}"
            for name, value in numbers_in(line[key], start):
                drawn.setdefault(name, []).append((line["step"], value))
    assert {"prompts/margin", "validation/cmc/1", "stage2/images_per_s"} <= drawn.keys()

    found: dict[str, list[tuple[int, float]]] = {}
    for stage in ("stage1", "stage2"):
        board = board_of(finished, stage)
        for name in board.Tags()["scalars"]:
            found.setdefault(name, []).extend((e.step, e.value) for e in board.Scalars(name))
    assert found.keys() == drawn.keys()
    for name, points in drawn.items():  # which keeps them in 32 bits
        assert found[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]

    (attempt,) = records(finished.folder)
    sent: dict[str, list[tuple[int, float]]] = {}
    axes = {r.metric.glob_name: r.metric.step_metric for r in attempt if r.HasField("metric")}
    *curves, _ = rows(attempt)  # the last one has the images
    for row in curves:
        for name in row.keys() - {"stage1/step", "stage2/step"}:
            step = int(row[axes[f"{name.partition('/')[0]}/*"]])
            sent.setdefault(name, []).append((step, row[name]))
    assert sent == drawn
    assert len(curves) == len(lines)
    (about,) = [record.run for record in attempt if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    del config["_wandb"]
    assert config == yaml.safe_load(finished.config_file.read_text())


def test_tensorboard_and_w_and_b_get_the_final_test_and_ranked_images(finished: Run) -> None:
    score = (finished.result() or {})["mAP"]
    board, (attempt,) = board_of(finished, "result"), records(finished.folder)
    assert board.Scalars("result/mAP")[0].value == pytest.approx(score, rel=1e-6)
    assert summary(attempt)["result/mAP"] == score
    assert "_hparams_/session_start_info" in board.PluginTagToContent("hparams")
    [name] = board.Tags()["images"]
    [picture] = finished.folder.glob("wandb/offline-*/files/media/images/result/*.png")
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(board.Images(name)[0].encoded_image_string))),
        np.asarray(Image.open(picture)),
    )


def board_of(run: Run, part: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.tensorboard / f"{part} seed=1234"))
    board.Reload()
    return board


def test_the_result_is_what_the_features_file_gives(finished: Run) -> None:
    groups = read_features(finished.features_file).groups
    query, gallery = groups["query"], groups["gallery"]
    ranking = evaluate_ranking(
        query.features, gallery.features, query.identities, gallery.identities,
        query.cameras, gallery.cameras,
    )
    assert result(finished)["mAP"] == ranking.mAP
    assert result(finished)["initial"]["mAP"] != ranking.mAP


@pytest.mark.slow
def test_the_best_epochs_model_is_kept_beside_the_last(runs: Path, brief: Run) -> None:
    longer = make_run(runs, *BRIEF, "stage2.epochs=2")
    experiment(longer)
    scores = [line["validation"]["mAP"] for line in longer.metrics() if "validation" in line]
    assert scores[0] > scores[1]
    assert not brief.best_file.exists()
    best, alone = load_file(longer.best_file), load_file(brief.weights_file)
    assert best.keys() == alone.keys()
    assert all(torch.equal(best[name], alone[name]) for name in alone)
    last = load_file(longer.weights_file)
    assert any(not torch.equal(best[name], last[name]) for name in last)


def copied(finished: Run, folder: Path) -> Run:
    shutil.copytree(finished.folder, folder / "copied" / finished.signature)
    shutil.copytree(finished.folder.parent.parent / "cache", folder / "cache")
    return Run(folder / "copied" / finished.signature)


def test_features_of_a_finished_run_are_taken_or_made_again_to_the_bit(
    finished: Run, tmp_path: Path
) -> None:
    run = copied(finished, tmp_path)
    before = run.features_file.stat().st_mtime_ns
    assert run_features(run.folder) == [run.features_file]
    assert run.features_file.stat().st_mtime_ns == before
    run.features_file.unlink()
    assert run_features(run.folder) == [run.features_file]
    assert not run.lock_file.exists()
    for name, group in read_features(finished.features_file).groups.items():
        again = read_features(run.features_file).groups[name]
        assert again.features.tobytes() == group.features.tobytes()


def test_features_of_a_run_without_a_model_or_of_another_run_are_refused(
    finished: Run, tmp_path: Path
) -> None:
    run = copied(finished, tmp_path)
    with pytest.raises(UserError, match=r"stage2\.epochs=3: that would be another run"):
        run_features(run.folder, ["stage2.epochs=3"])
    run.features_file.unlink()
    run.weights_file.unlink()
    with pytest.raises(UserError, match=r"the run is new and has no model\.safetensors"):
        run_features(run.folder)
    with pytest.raises(UserError, match=r"there is no config\.yaml"):
        run_features(tmp_path)


def test_half_precision_features_are_half_the_size_and_what_the_result_is_of(brief: Run) -> None:
    file = read_features(brief.features_file)
    groups = file.groups
    query, gallery = groups["query"], groups["gallery"]
    assert query.features.dtype == gallery.features.dtype == "float16"
    plain, reranked = (
        evaluate_ranking(
            query.features, gallery.features, query.identities, gallery.identities,
            protocol="all_gallery", rerank=setting,
        ).as_json()
        for setting in (None, KReciprocal(7, 3, 0.5))
    )
    found = result(brief)
    assert (file.protocol, found["protocol"]) == ("all_gallery", "all_gallery")
    assert {key: found[key] for key in plain} == plain
    assert len(found["cmc"]) == 50
    used = {"k1": 7, "k2": 3, "weight": 0.5}
    assert found["reranked"] == {"rerank": used, **reranked}
    assert plain["mAP"] != reranked["mAP"]


def test_a_run_on_staged_images_reads_only_those_and_has_the_same_numbers_to_the_last_digit(
    finished: Run, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    run = make_run(alone, "data.stage=$NODE_DISK")
    assert run.signature == finished.signature
    read: set[str] = set()

    class Watched(ImageLoader):
        def __init__(self, paths: Sequence[str], *arguments: Any, **options: Any) -> None:
            read.update(paths)
            super().__init__(paths, *arguments, **options)

    for module in (svll.stage2, svll.features.extract):
        monkeypatch.setattr(module, "ImageLoader", Watched)
    experiment(run)
    assert numbers(run) == numbers(finished)
    assert result(run) == result(finished)
    staged = {str(path) for path in (tmp_path / "node").rglob("*.jpg")}
    assert read <= staged
    assert len(read) > 100
    kept = [read_features(r.features_file).groups["gallery"].paths for r in (run, finished)]
    assert [Path(p).name for p in kept[0]] == [Path(p).name for p in kept[1]]
    assert not set(kept[0]) & staged


def stop_at(asking: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on until the run asks for this time whether to stop: between steps and epochs."""
    answers = iter([False] * (asking - 1))
    monkeypatch.setattr(loop, "stop_requested", lambda: next(answers, True))
    with pytest.raises(Stopped):
        experiment(run)
    assert not run.is_complete()


def test_another_seed_gives_other_numbers(
    finished: Run, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_run(alone, "seed=2")
    stop_at(3, other, monkeypatch)
    first, known = numbers(other)[0], numbers(finished)[0]
    assert first["step"] == known["step"]
    assert all(value != known["losses"][name] for name, value in first["losses"].items())


def test_a_run_that_was_stopped_ends_with_the_numbers_of_one_that_was_not(
    finished: Run, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(alone)
    for state in ("stage1 2 0", "stage2 1 1", "stage2 2 0", "stage2 2 2"):
        stop_at(2, run, monkeypatch)
        found = latest(run.checkpoints, signature=run.signature)
        assert found is not None
        assert f"{found[1].stage} {found[1].epoch} {found[1].step}" == state
    monkeypatch.undo()
    experiment(run)
    assert numbers(run) == numbers(finished)
    assert result(run) == result(finished)


# --- stops outside of training ---


STEPS = ("load_inputs", "check_decoding", "_all", "validate", "learn_prompts", "_test",
         "initial_metrics")
"""Functions that a run goes through, by which places are named."""
PLACES = {
    "load_inputs: reading the datasets", "load_inputs: loading the model",
    "check_decoding: checking that all images decode", "_all: encoding images",
    "validate: encoding the prompts", "validate: ranking features",
    "learn_prompts: encoding the prompts", "validate: encoding images", "_test: encoding images",
    "_test: ranking features", "initial_metrics: encoding images",
    "initial_metrics: ranking features",
}


class Places:
    """Stands in for `stopping.stop_requested`: counts who asks, and says yes at chosen places."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: Counter[str] = Counter()
        self.stop_at: tuple[str, int] | None = None
        self.requested = False
        patch.setattr(stopping, "stop_requested", self)

    def __call__(self) -> bool:
        frame, doing, step = sys._getframe(1), "", ""
        while frame is not None and not step:
            doing = doing or frame.f_locals.get("doing", "")
            step = frame.f_code.co_name if frame.f_code.co_name in STEPS else ""
            frame = frame.f_back  # type: ignore[assignment]
        place = f"{step}: {doing or RANKING}"
        self.seen[place] += 1
        self.requested |= self.stop_at == (place, self.seen[place])
        return self.requested


@pytest.fixture(scope="module")
def watched(runs: Path, finished: Run) -> tuple[Run, Counter[str]]:
    """A run of one epoch a stage that nothing disturbs, and the places where a stop could end it,
    with the number of times."""
    run = make_run(runs / "watched", *BRIEF, "stage2.epochs=1", "evaluation.batch=16",
                   f"data.root={next((finished.folder.parents[1] / 'cache/data').iterdir())}")
    with pytest.MonkeyPatch.context() as patch:
        places = Places(patch)
        experiment(run)
    return run, places.seen


def test_a_run_stopped_anywhere_outside_of_training_ends_with_the_same_numbers(
    watched: tuple[Run, Counter[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, visits = watched
    assert visits.keys() == PLACES
    run = Run(tmp_path / "test" / calm.signature)
    run.create(calm.config_file.read_text())
    for place, count in visits.items():  # in the order of a run
        places = Places(monkeypatch)
        places.stop_at = place, min(2, count)  # in the midst of a loop
        with pytest.raises(Stopped, match=f"while {place.partition(': ')[2]}"):
            experiment(run)
        if place == "_all: encoding images":
            assert list((tmp_path / "cache").glob("stage1/*.parts/*/part-*")), "kept"
        if place.startswith("validate"):
            found = latest(run.checkpoints, signature=run.signature)
            assert found is not None
            assert found[1].step > 0, "the epoch is not trained again"
        if place == "_test: encoding images":
            assert list(run.folder.glob("features.parts/*/part-*")), "kept"
        assert not run.is_complete()
    again = Places(monkeypatch)
    experiment(run)
    assert numbers(run) == numbers(calm)
    assert result(run) == result(calm)
    weights, expected = load_file(run.weights_file), load_file(calm.weights_file)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    # what the attempts before had done was not done again
    assert again.seen["_all: encoding images"] == 0


def carry_out(folder: str, stops: dict[str, int]) -> list[Any]:
    """Run on this rank to the end; the last rank alone is asked to stop, once at each place.
    Returns how each attempt ended, the metric log and the result."""
    run, endings = Run(Path(folder)), []
    for stop_at in (*stops.items(), None):
        with pytest.MonkeyPatch.context() as patch:
            if ranks.rank() == ranks.world_size() - 1:
                Places(patch).stop_at = stop_at
            endings.append(execute(run))
        ranks.barrier()  # rank 0 writes the status last
        endings.append(run.status().get("reason", ""))
        ranks.barrier()
    return [endings, numbers(run), result(run)]


def test_two_ranks_of_which_one_is_told_to_stop_end_with_the_same_numbers(
    two_ranks: Any, watched: tuple[Run, Counter[str]], tmp_path: Path
) -> None:
    yaml_text = watched[0].config_file.read_text()
    stops = {"_all: encoding images": 2, "validate: ranking features": 1,
             "_test: encoding images": 2}
    found = {}
    for name, places in (("calm", {}), ("stopped", stops)):
        run = Run(tmp_path / name / "test" / watched[0].signature)
        run.create(yaml_text)
        found[name] = two_ranks(carry_out, folder=run.folder, stops=places)
    for rank, (endings, *_) in enumerate(found["stopped"]):
        assert endings[::2] == ["stopped"] * len(stops) + ["complete"], rank
        for place, reason in zip(stops, endings[1::2], strict=False):
            assert reason.startswith(f"on request while {place.partition(': ')[2]}")
            assert ("or more are kept" in reason) == ("encoding" in place)
    assert found["stopped"][0][1:] == found["calm"][0][1:]


def test_weights_of_zero_are_plain_clip_reid(brief: Run) -> None:
    losses = [set(line["losses"]) for line in brief.metrics()]
    assert all(names in ({"i2t", "t2i"}, {"id", "triplet", "i2t"}) for names in losses)


@pytest.mark.slow
def test_losses_are_finite_in_bf16(runs: Path) -> None:
    run = make_run(  # a CPU imitates bf16, slowly
        runs, "engine.precision=bf16", "stage1.epochs=1", "stage2.epochs=1", "data.height=16",
        "stage1.warmup_epochs=0", "stage2.warmup_epochs=0", "data.world.train_identities=4",
        "data.world.test_identities=2", "data.validation=0", "stage1.batch=8", "stage2.batch=8",
    )
    experiment(run)
    assert all(math.isfinite(v) for line in run.metrics() for v in line["losses"].values())


def test_an_unreadable_image_is_named_before_training(finished: Run, tmp_path: Path) -> None:
    world = next((finished.folder.parents[1] / "cache" / "data").iterdir())
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    broken = sorted((copy / "query").glob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:300])
    run = make_run(tmp_path / "runs", f"data.root={copy}")
    with pytest.raises(UserError, match=broken.name):
        experiment(run)
    assert run.metrics() == []


def test_a_batch_that_needs_more_identities_than_there_are_is_refused(runs: Path) -> None:
    run = make_run(runs, "stage2.batch=64")
    with pytest.raises(UserError, match="16 identities at a time, the training part has 6"):
        experiment(run)


def test_the_weights_file_holds_the_configuration(finished: Run) -> None:
    from safetensors import safe_open

    with safe_open(finished.weights_file, framework="np") as file:
        assert "lss_weight: 0.8" in file.metadata()["config"]
    assert json.loads(finished.result_file.read_text())["protocol"]
