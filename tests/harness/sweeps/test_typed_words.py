"""Sweeps as their users type them: words without a file, and the words of other tools."""

from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.sweeps.reading import read_sweep
from tests.harness.sweeps.small import METRICS, Config, faults_of


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("{values: [0.1, 0.2]}", "{grid: [0.1, 0.2]}"),                          # W&B
        ("{value: 0.1}", "overrides: {KEY: 0.1}"),
        ("{min: 0.1, max: 0.5}", "{uniform: [0.1, 0.5]}"),
        ("{min: 1, max: 8}", "{randint: [1, 9]}"),                               # 8 is included
        ("{distribution: log_uniform_values, min: 0.001, max: 0.1}", "{loguniform: [0.001, 0.1]}"),
        ("{grid_search: [0.1, 0.2]}", "{grid: [0.1, 0.2]}"),                     # Ray
        ("'tune.grid_search([0.1, 0.2])'", "{grid: [0.1, 0.2]}"),
        ("'ray.tune.loguniform(1e-4, 1e-1)'", "{loguniform: [1e-4, 1e-1]}"),
        ("'choice(0.1, 0.2)'", "{choice: [0.1, 0.2]}"),                          # Hydra
        ("'interval(0, 1)'", "{uniform: [0, 1]}"),
    ],
)
def test_a_search_in_the_words_of_other_tools_is_answered_with_ours(
    read, theirs: str, ours: str
) -> None:
    [line] = faults_of(read, f"recipe: base\nsearch:\n  train.lr: {theirs}\n")
    assert line.startswith("tried.yaml, line 3: train.lr: found ")
    assert line.endswith(f"; did you mean {ours}?")


def test_keys_of_other_tools_are_answered_with_ours_and_their_line(read) -> None:
    assert set(faults_of(read, "\n".join([
        "recipe: base",
        "method: grid",
        "metric: {name: mAP, goal: maximize}",
        "parameters: {train.lr: {values: [0.1, 0.2]}}",
        "num_samples: 4",
    ]))) == {
        "tried.yaml, line 2: no key method; did you mean search: {KEY: {grid: [...]}} (bayes: "
        "algorithm: gp; random: choice, uniform ... and samples)?",
        "tried.yaml, line 3: metric: expected its name; write metric: NAME and mode: max (or min)",
        "tried.yaml, line 4: no key parameters; did you mean search?",
        "tried.yaml, line 5: no key num_samples; did you mean samples?",
    }


# --- a sweep without a file ---


def typed_sweep(recipes: Path, *words: str, recipe: str = "base"):
    return read_sweep(recipe, schema=Config, recipes=recipes, overrides=words, metrics=METRICS,
                      name="typed")


def test_typed_words_make_the_same_trials_as_a_file(read, recipes: Path) -> None:
    file = read("name: typed\nrecipe: base\nsearch:\n  train.lr: {grid: [0.1, 0.2]}\n"
                "  train.name: {grid: [a, b]}\nseeds: [1, 2]\noverrides: {train.width: 9}\n")
    words = "train.lr=0.1,0.2", "train.name=a,b", "seed=1,2", "train.width=9"
    typed = typed_sweep(recipes, *words)
    assert [t.run.folder for t in typed.trials] == [t.run.folder for t in file.trials]
    assert len(typed.trials) == 8
    assert typed.words == ("base", *words)
    assert file.words == ()


def test_several_recipes_may_be_typed(recipes: Path) -> None:
    (recipes / "wide.yaml").write_text("train: {width: 32}\nrun: {runs: here}\n")
    typed = typed_sweep(recipes, "train.lr=0.1,0.2", recipe="base,wide")
    assert [(t.config.train.width, t.config.train.lr) for t in typed.trials] == [
        (8, 0.1), (8, 0.2), (32, 0.1), (32, 0.2)]


def test_a_mistake_among_typed_words_is_reported_with_its_place(recipes: Path) -> None:
    with pytest.raises(UserError) as caught:
        typed_sweep(recipes, "train.lr=0.1,wide", "train.lrr=1,2")
    assert str(caught.value).splitlines() == [
        "command line, override 1: train.lr: expected a number, found 'wide'",
        "command line, override 2: no key train.lrr; did you mean train.lr?"]


def test_added_points_and_seeds_keep_the_names_of_earlier_trials(read, recipes: Path) -> None:
    text = "recipe: base\nsearch:\n  train.lr: {{grid: {}}}\nseeds: {}\n"
    few = read(text.format([0.1, 0.2], [1]))
    more = read(text.format([0.3, 0.2, 0.1], [1, 2]))
    assert {t.signature for t in few.trials} < {t.signature for t in more.trials}
    assert len(more.trials) == 6


def test_several_values_without_a_name_are_answered_with_the_command(recipes: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_sweep("base", schema=Config, recipes=recipes, overrides=["train.lr=1,2", "seed=[1,2]"])
    command = "; for a run with each value: launch/slurm.py --sweep-name NAME --recipe RECIPE "
    assert [line.partition("found ")[2] for line in str(caught.value).splitlines()] == [
        f"'1,2'{command}train.lr=1,2", f"[1, 2]{command}seed=1,2"]
