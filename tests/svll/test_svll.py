"""The names that users call: what they are, what they say of themselves, and what importing costs.
"""

import doctest
import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import svll
from harness.base.errors import UserError
from harness.base.files import write_json
from harness.runs.execute import load_function
from harness.runs.run import Run
from harness.sweeps.sweep_results import read_outcomes
from svll.evaluation import KReciprocal, evaluate_ranking
from svll.evaluation.bootstrap import interval
from svll.evaluation.multi_query import average_queries
from svll.evaluation.pair import Pair, group_of
from svll.evaluation.protocols import evaluate_draws
from svll.evaluation.verification import verify
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel
from tests.gpu.emulator import emulated

ROOT = Path(__file__).parents[2]


def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 6)), rng.normal(size=(50, 6))


def test_the_public_names_are_there_after_a_cheap_import() -> None:
    program = (
        "import sys, svll\n"
        "assert not {'torch', 'numba'} & set(sys.modules)\n"
        "assert dir(svll) == sorted(svll.__all__)\n"
        "for name in svll.__all__: getattr(svll, name)\n"
        "svll.losses.triplet_loss\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert svll.evaluate is evaluate_ranking
    with pytest.raises(AttributeError, match="module 'svll' has no attribute 'evalute'"):
        _ = svll.evalute


@pytest.mark.parametrize(("name", "parameters"), [
    ("svll.evaluation.evaluate_ranking", "query gallery query_identities gallery_identities "
     "query_cameras gallery_cameras max_rank metric rerank"),
    ("svll.evaluation.KReciprocal", "k1 k2 weight"),
    ("svll.losses.supcon_loss", "a b labels_a labels_b"),
    ("svll.losses.ntxent_loss", "a b temperature"),
    ("svll.losses.triplet_loss", "features labels margin"),
    ("svll.models.load_model", "path device"),
    ("svll.load", "path"),
])
def test_names_that_others_call_stay_with_their_parameters(name: str, parameters: str) -> None:
    module, _, function = name.rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert set(parameters.split()) <= set(found)


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "svll.__version__"}
    with suppress(PackageNotFoundError):  # run from the source alone
        assert version("svll-reid") == svll.__version__


PUBLIC = [
    svll.evaluate, svll.load, svll.rerank, svll.KReciprocal, svll.QueryExpansion,
    *(getattr(svll.losses, name) for name in svll.losses.__all__ if name != "agreement_loss"),
]


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_every_public_name_has_an_example_that_gives_what_it_says(thing: Any) -> None:
    names = {"svll": svll, "np": np, "torch": torch, thing.__name__: thing}
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    [example] = finder.find(thing, globs=names)
    assert example.examples
    assert not runner.run(example).failed


def test_a_model_a_run_an_evaluation_and_a_sweep_say_what_they_are(tmp_path: Path) -> None:
    query, gallery = features()
    labels = np.arange(12) % 3, np.arange(50) % 3
    result = svll.evaluate(query, gallery, *labels)
    assert repr(result) == (
        f"RankingResult(mAP {result.mAP:.4f}, mINP {result.mINP:.4f}, "
        f"Rank-1 {np.mean(result.first_rank == 1):.4f}, 12 queries)"
    )
    assert repr(svll.rerank(query, gallery, top_k=3)) == "Reranked(12 queries, 3 nearest of each)"
    run = Run(tmp_path / "loss_weights" / "a")
    assert repr(run) == f"Run('{run.folder}', new)"
    run.set_status("stopped", pruned=True)
    assert repr(run) == f"Run('{run.folder}', ended early)"
    write_json(run.result_file, {"validation": {"mAP": 0.75}})
    write_json(run.folder.parent / "sweep.json", {
        "name": "loss_weights", "metric": "validation.mAP", "mode": "max",
        "trials": [{"point": {}, "seed": 1, "signature": name} for name in ("a", "b")],
    })
    assert repr(read_outcomes(run.folder.parent)) == (
        "SweepResults('loss_weights', 1 of 2 trials complete, best validation.mAP 0.7500)"
    )


def test_the_shipped_model_is_loaded_by_its_name_as_runs_start_from_it() -> None:
    images = torch.rand(2, 3, 64, 32)
    clip = load_clip("svll-tiny", "shipped", height=64, width=32, stride=8)
    expected = ReIDModel(clip.image.eval(), None).encode_image(images)
    found = svll.load("svll-tiny")
    assert torch.equal(found.model.encode_image(images), expected)
    assert found.model.feature_width == expected.shape[1]


@pytest.mark.parametrize("function", [svll.evaluate, svll.rerank, svll.load])
def test_signatures_name_every_argument_and_docstrings_explain_them(function) -> None:  # type: ignore[no-untyped-def]
    parameters = inspect.signature(function).parameters.values()
    assert all(one.kind is not one.VAR_KEYWORD for one in parameters)
    text = inspect.getdoc(function) or ""
    assert all(one.name in text for one in parameters)


def test_re_ranking_returns_the_nearest_as_a_ranking_with_labels_does() -> None:
    query, gallery = features()
    found = svll.rerank(query, gallery, k1=6, k2=2, weight=0.4, top_k=7)
    labels = np.zeros(12, int), np.zeros(50, int), np.zeros(12, int), np.ones(50, int)
    expected = svll.evaluate(
        query, gallery, *labels, rerank=KReciprocal(6, 2, 0.4), top_k=7
    )
    np.testing.assert_array_equal(found.nearest, expected.nearest)
    np.testing.assert_array_equal(found.distances, expected.distances)
    assert svll.rerank(query, gallery, top_k=60).nearest.shape == (12, 50)


def calls(move: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[Any]:
    """Call what takes features and labels, as tensors that `move` has sent somewhere."""
    rng = np.random.default_rng(1)
    ids, cams = [rng.integers(0, 5, n) for n in (12, 50)], [rng.integers(0, 3, n) for n in (12, 50)]
    query, gallery = (move(torch.from_numpy(rows)) for rows in features())
    labels = q_ids, g_ids, *_ = [move(torch.from_numpy(column)) for column in (*ids, *cams)]
    for how in (
        {}, {"protocol": "other_cameras", "metric": "cosine", "top_k": 3},
        {"protocol": "all_gallery", "rerank": True, "top_k": 3},
        {"protocol": "random_gallery"}, {"expand": svll.QueryExpansion(3), "normalise": True},
    ):
        yield svll.evaluate(query, gallery, *labels, **how)
    yield svll.evaluate(query.half(), gallery.half(), list(q_ids), g_ids)
    yield svll.rerank(query, gallery, k1=5, k2=2, top_k=4)
    sides = (group_of(query, *labels[::2]), group_of(gallery, *labels[1::2]))
    yield verify(Pair(*sides))
    yield average_queries(sides[0]).features
    yield evaluate_draws(gallery, g_ids)
    yield interval(query[:, 0], q_ids)
    yield svll.losses.supcon_loss(query, gallery, q_ids, g_ids)
    yield svll.losses.ntxent_loss(query, query + 1)
    yield svll.losses.simsiam_loss(query, query + 1, query + 2, query + 3)
    yield svll.losses.triplet_loss(query, q_ids)
    yield svll.losses.smooth_cross_entropy(query, q_ids)


def numbers(found: Any) -> Any:
    """Return a result in numbers of Python, which compare by value."""
    if is_dataclass(found):
        return [numbers(getattr(found, one.name)) for one in fields(found)]
    if isinstance(found, list | tuple):
        return [numbers(one) for one in found]
    return repr(found.tolist()) if hasattr(found, "tolist") else found


def test_tensors_on_a_gpu_give_what_they_give_on_the_cpu() -> None:
    expected = [numbers(found) for found in calls(lambda tensor: tensor)]
    with emulated() as gpu:
        assert [numbers(found) for found in calls(lambda tensor: tensor.to("cuda"))] == expected
        assert gpu.mismatches == []


def test_wrong_arguments_are_told_in_the_words_of_the_call() -> None:
    query, gallery = features()
    for more, message in (
        ({"k1": 2.5}, "k1 is 2.5; an integer of at least 1 is needed"),
        ({"k2": "6"}, "k2 is '6'; an integer of at least 1"),
        ({"weight": 2}, "weight is 2; it must lie between 0 and 1"),
        ({"top_k": 0}, "top_k is 0; an integer of at least 1 is needed"),
    ):
        with pytest.raises(UserError, match=message):
            svll.rerank(query, gallery, **more)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="both must come from one model"):
        svll.rerank(query, gallery[:, :3])
    with pytest.raises(TypeError, match=r"rerank\(\) has no argument 'topk'; did you mean top_k"):
        svll.rerank(query, gallery, topk=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"load\(\) has no argument 'heigth'; did you mean height"):
        svll.load("weights", heigth=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(("change", "message"), [
    (lambda rows: 3, "query features are of type int; give an array or tensor"),
    (lambda rows: rows.tolist(), "query features are of type list; give an array or tensor"),
    (lambda rows: np.float64(1), r"query features have shape \[\]; expected \[images, width\]"),
    (lambda rows: rows[0], r"query features have shape \[6\]; expected \[images, width\]"),
    (lambda rows: rows.astype(complex), "query features are complex128; give real numbers"),
    (lambda rows: rows.astype(object), "query features are object; give real numbers"),
    (lambda rows: torch.zeros(12, 6, device="meta"), "on the device meta, which holds no numbers"),
    (lambda rows: torch.zeros(12, 6).to_sparse(), "query features are sparse; give .*to_dense"),
    (lambda rows: np.full((12, 6), np.nan), "query features: rows 0, 1, 2.* hold NaN"),
])
def test_what_is_no_table_of_numbers_is_refused_by_ranking_and_re_ranking(
    change: Callable[[Any], Any], message: str
) -> None:
    query, gallery = features()
    with pytest.raises(UserError, match=message):
        svll.rerank(change(query), gallery)
    with pytest.raises(UserError, match=message):
        svll.evaluate(change(query), gallery, np.arange(12) % 3, np.arange(50) % 3)


@pytest.mark.parametrize(("labels", "message"), [
    (torch.zeros(12, device="meta"), "query_identities: labels are on the device meta"),
    ([[1], [2, 3], *[[4]] * 10], "query_identities: .*inhomogeneous"),
])
def test_labels_that_cannot_be_read_are_refused_by_name(labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        svll.evaluate(*features(), labels, np.arange(50) % 3)


@pytest.mark.parametrize("old", svll.MOVED)
def test_a_function_that_an_earlier_runs_configuration_names_is_found(
    old: str, tmp_path: Path
) -> None:
    run, key = Run(tmp_path), "report" if "report" in old else "prepare"
    run.create(f"run:\n  {key}: {old}\n")
    module, _, name = svll.MOVED[old].rpartition(".")
    assert load_function(run, key) is getattr(importlib.import_module(module), name)
