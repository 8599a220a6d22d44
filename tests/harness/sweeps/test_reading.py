"""Sweep files: what they expand to, and what is said about their mistakes."""

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import UserError
from harness.config.signature import signature
from harness.sweeps.dimensions import Dimension
from harness.sweeps.keys import Asha, Median, find_sweep
from harness.sweeps.reading import (
    Setting,
    expand,
    make_trial,
    read_sweep,
)
from tests.harness.sweeps.small import Config, Train, faults_of

# --- expanding ---


def test_trials_are_grid_times_seeds_in_the_files_order(read) -> None:
    sweep = read(
        "recipe: base\nsearch:\n  train.lr: {grid: [0.1, 0.2]}\n  train.width: {grid: [8, 9]}\n"
        "seeds: [1, 2]\n"
    )
    found = [(t.point["train.lr"], t.point["train.width"], t.seed) for t in expand(sweep)]
    assert found == [
        (lr, width, seed) for lr in (0.1, 0.2) for width in (8, 9) for seed in (1, 2)
    ]
    assert [t.index for t in sweep.trials] == list(range(8))
    assert sweep.trials[3].config.train.lr == 0.1
    assert sweep.trials[3].config.train.epochs == 6
    assert sweep.trials[3].title == "lr=0.1 width=9 seed=2"


def test_a_searched_key_may_be_written_nested(read) -> None:
    flat = read("recipe: base\nsearch: {train.lr: {grid: [0.1, 0.2]}}\n")
    nested = read("recipe: base\nsearch: {train: {lr: {grid: [0.1, 0.2]}}}\n")
    assert [t.signature for t in flat.trials] == [t.signature for t in nested.trials]


def test_a_trials_folder_is_named_by_the_signature_of_its_resolved_config(read) -> None:
    sweep = read("name: lengths\nrecipe: base\nsearch: {train.lr: {grid: [0.5]}}\nseeds: [3]\n")
    plain = Config(seed=3, train=Train(lr=0.5, epochs=6))
    [trial] = sweep.trials
    assert trial.run.folder == Path("here/lengths") / signature(plain)
    assert trial.config.run.name == "lengths"


def test_the_backend_and_resources_do_not_change_a_signature(read) -> None:
    text = "recipe: base\nsearch: {train.lr: {grid: [0.5, 0.6]}}\n"
    one = read(text)
    words = ("backend=ray", "resources.cpus=4", "scheduler.asha={grace: 3}", "run.threads=9")
    other = read(text, *words)
    assert [t.signature for t in one.trials] == [t.signature for t in other.trials]
    assert other.scheduler == Asha(grace=3, reduction=3)


def test_a_sweep_without_seeds_runs_with_the_recipes(read) -> None:
    assert [t.seed for t in read("recipe: base\n").trials] == [7]
    assert [t.seed for t in read("recipe: base\n", "seeds=[4, 5]").trials] == [4, 5]


def test_a_sweep_without_a_name_takes_its_files(read) -> None:
    assert read("recipe: base\n").name == "tried"


def test_the_command_line_changes_trials_and_the_sweep_itself(read) -> None:
    sweep = read(
        "recipe: base\noverrides: {train.width: 3}\nslurm: {partition: slow}\n",
        "train.lr=0.9", "slurm.partition=fast", "slurm.qos=high", "ray.nodes=3", "metric=mAP",
        "search.train.epochs={grid: [1, 2]}",
    )
    assert [t.config.train.epochs for t in sweep.trials] == [1, 2]
    assert {(t.config.train.lr, t.config.train.width) for t in sweep.trials} == {(0.9, 3)}
    assert sweep.slurm == {"partition": "fast", "qos": "high"}
    assert (sweep.ray.nodes, sweep.selected_on) == (3, "selected on test")


def test_a_recipes_path_is_meant_from_the_sweeps_folder(
    read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("extends: base\ntrain: {width: 3}\n")
    monkeypatch.chdir("/")
    [trial] = read("recipe: mine.yaml\n").trials
    assert (trial.config.train.width, trial.config.train.epochs) == (3, 6)
    monkeypatch.chdir(tmp_path / "recipes")  # as before: from the current folder
    [trial] = read("recipe: base.yaml\n").trials
    assert trial.config.train.epochs == 6


def test_a_sweep_is_found_by_path_or_by_its_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "weights.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert find_sweep("weights", shipped) == shipped / "weights.yaml"
    (tmp_path / "weights").mkdir()  # a folder is no sweep
    assert find_sweep("weights", shipped) == shipped / "weights.yaml"
    (tmp_path / "weights.yaml").touch()
    assert find_sweep("weights.yaml", shipped) == Path("weights.yaml")
    with pytest.raises(UserError) as caught:
        find_sweep("sweeps/weigths.yaml", shipped)
    assert str(caught.value).splitlines() == [
        f"--sweep sweeps/weigths.yaml: no such file ({tmp_path}/sweeps/weigths.yaml), and no "
        "shipped sweep of this name; did you mean weights?",
        f"shipped sweeps ({shipped}): weights",
    ]
    with pytest.raises(UserError, match="did you mean weights or "):
        find_sweep("weigths.yaml", shipped)


def test_a_recipe_is_a_sweep_of_one_trial(recipes: Path) -> None:
    sweep = read_sweep("base", schema=Config, recipes=recipes, overrides=["train.lr=0.3"])
    [trial] = sweep.trials
    assert trial.run.folder == Path("here/base") / signature(Config(train=Train(lr=0.3, epochs=6)))
    several = read_sweep("base", schema=Config, recipes=recipes, overrides=["seeds=[1,2]"])
    assert [t.seed for t in several.trials] == [1, 2]


def test_a_trial_of_a_point_found_elsewhere_is_the_same_run(read) -> None:
    sweep = read("recipe: base\nsearch: {train.lr: {grid: [0.1, 0.2]}}\nseeds: [1]\n")
    again = make_trial(sweep, 0, {"train.lr": 0.2}, Setting("seed", 1, "here"))
    assert again.run.folder == sweep.trials[1].run.folder


def test_searched_values_are_of_their_keys_type(read) -> None:
    sweep = read(
        "recipe: base\nsearch:\n  train.lr: {grid: [1e-4, 1E-5, 1]}\n"
        "  train.name: {grid: [no, 1e4], when: train.lr < 5e-5}\n"
        "constraints: [train.lr <= 5e-1]\n"
    )
    found = [(t.point["train.lr"], t.point.get("train.name")) for t in sweep.trials]
    assert found == [(1e-4, None), (1e-5, "no"), (1e-5, "1e4")]
    [whole] = read("recipe: base\nsearch: {train.lr: {grid: [1]}}\n").trials
    assert type(whole.point["train.lr"]) is float
    text = "search={train.lr: {loguniform: [1e-6, 1e-3]}, train.width: {choice: [2, 3]}}"
    words = read("recipe: base\nsamples: 3\n", text)
    assert all(1e-6 <= t.point["train.lr"] <= 1e-3 for t in words.trials)
    assert faults_of(read, "recipe: base\nsearch: {train.lr: {grid: [1e-4, '2', 1_000]}}\n") == [
        "tried.yaml, line 2: train.lr: expected a number, found '2'",
        "tried.yaml, line 2: train.lr: expected a number, found '1_000'",
    ]


# --- random dimensions ---


def test_more_samples_keep_the_earlier_draws(read) -> None:
    text = "recipe: base\nsearch: {train.lr: {loguniform: [0.001, 1.0]}}\nsamples: "
    few, many = read(f"{text}3\n"), read(f"{text}8\n")
    assert [t.point for t in many.trials][:3] == [t.point for t in few.trials]
    assert len({t.point["train.lr"] for t in many.trials}) == 8


def test_every_grid_point_gets_the_same_draws(read) -> None:
    sweep = read(
        "recipe: base\nsamples: 4\nsearch:\n  train.width: {grid: [8, 9]}\n"
        "  train.lr: {uniform: [0, 1]}\n"
    )
    drawn = {w: [t.point["train.lr"] for t in sweep.trials if t.point["train.width"] == w]
             for w in (8, 9)}
    assert drawn[8] == drawn[9]
    assert len(drawn[8]) == 4


def test_two_dimensions_do_not_share_their_draws() -> None:
    one = Dimension("a", "uniform", (0.0, 1.0), "")
    other = dataclasses.replace(one, key="b")
    pairs = [(one.draw(n), other.draw(n)) for n in range(2000)]
    mean_a, mean_b = (sum(p[i] for p in pairs) / len(pairs) for i in (0, 1))
    covariance = sum((a - mean_a) * (b - mean_b) for a, b in pairs) / len(pairs)
    assert abs(covariance * 12) < 0.08  # correlation; 1/sqrt(n) is 0.022


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_draws_fill_their_range_evenly(kind: str) -> None:
    low, high = 0.01, 100.0
    values = [Dimension("x", kind, (low, high), "").draw(n) for n in range(4000)]
    assert all(low <= v <= high for v in values)
    scale = (lambda v: math.log(v / low) / math.log(high / low)) if kind == "loguniform" else (
        lambda v: (v - low) / (high - low)
    )
    counts = [0] * 10
    for value in values:
        counts[min(9, int(scale(value) * 10))] += 1
    assert sum((c - 400) ** 2 / 400 for c in counts) < 27.9  # chi-squared, 9 degrees, p = 0.001


@given(low=st.integers(-50, 50), span=st.integers(1, 20), n=st.integers(0, 10**6))
def test_randint_leaves_the_upper_end_out(low: int, span: int, n: int) -> None:
    value = Dimension("x", "randint", (low, low + span), "").draw(n)
    assert low <= value < low + span
    assert isinstance(value, int)


def test_randint_and_choice_reach_every_value() -> None:
    whole = Dimension("x", "randint", (2, 6), "")
    words = Dimension("x", "choice", ("a", "b", "c"), "")
    assert {whole.draw(n) for n in range(100)} == {2, 3, 4, 5}
    assert {words.draw(n) for n in range(100)} == {"a", "b", "c"}


def test_a_draw_that_falls_on_an_earlier_one_is_one_trial(read) -> None:
    sweep = read("recipe: base\nsamples: 20\nsearch: {train.width: {choice: [4, 5]}}\n")
    assert sorted(t.point["train.width"] for t in sweep.trials) == [4, 5]
    assert [t.index for t in sweep.trials] == [0, 1]


# --- mistakes ---


def test_every_mistake_is_reported_at_once_with_its_line(read) -> None:
    assert set(faults_of(read, "\n".join([
        "name: two words",                          # 1
        "recipe: bass",
        "overrides: {train.epochs: many}",
        "search:",
        "  train.lrr: {grid: [0.1, 0.2]}",          # 5
        "  train.width: {grid: [8, wide]}",
        "  train.epochs: {grid: [0, 2]}",
        "  train.lr: {grid: []}",
        "seeds: [1, 1]",
        "metric: validation.map",                   # 10
        "resources: {cpus: 0, time: 4x, memory: 3}",
        "slurm: {setup: here, env: {1a: 2}}",
        "scheduler: {asha: {grac: 2}}",
        "colour: red",
    ]))) == {
        "tried.yaml, line 1: name: 'two words' must be a plain folder name (letters, digits, "
        ". _ -)",
        "tried.yaml, line 2: no recipe 'bass'; did you mean base?",
        "recipes: base",
        "tried.yaml, line 3: train.epochs: expected an integer, found 'many'",
        "tried.yaml, line 3: train.epochs is searched already (tried.yaml, line 7)",
        "tried.yaml, line 5: no key train.lrr; did you mean train.lr?",
        "tried.yaml, line 6: train.width: expected an integer, found 'wide'",
        "tried.yaml, line 7: train.epochs: must be at least 1",
        "tried.yaml, line 8: train.lr: grid: is empty",
        "tried.yaml, line 9: seeds: [1, 1] has a seed twice",
        "tried.yaml, line 10: metric: no metric 'validation.map'; did you mean validation.mAP?",
        "tried.yaml, line 11: resources.cpus: must be at least 1, found 0",
        "tried.yaml, line 11: resources.time: '4x' is not a time; write it as 90m, 1d12h or "
        "1-12:00:00",
        "tried.yaml, line 11: resources.memory: '3' is not a size; write it as 500MB or 32GB",
        "tried.yaml, line 12: slurm.setup: expected a list of strings",
        "tried.yaml, line 12: slurm.env: '1a' is not a variable name",
        "tried.yaml, line 13: scheduler.asha: no key grac; did you mean grace?",
        "tried.yaml, line 14: no key colour",
    }


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("{gird: [1]}", "train.lr: unknown search type 'gird'; did you mean grid?"),
        ("[1, 2]", "train.lr: expected one of grid, choice, uniform, loguniform, randint, such "
                   "as {grid: [0.0, 0.8]}"),
        ("{grid: 3}", "train.lr: grid: expected a list, found 3"),
        ("{uniform: [2, 1]}", "train.lr: uniform: expected two rising numbers, found [2, 1]"),
        ("{loguniform: [0, 1]}",
         "train.lr: loguniform: expected two rising numbers above 0, found [0, 1]"),
        ("{randint: [0.5, 2]}",
         "train.lr: randint: expected two rising integers, found [0.5, 2]"),
        ("{uniform: [0, .nan]}", "train.lr: uniform: expected two rising numbers, found [0, nan]"),
    ],
)
def test_an_invalid_dimension_is_reported(read, search: str, message: str) -> None:
    assert f"tried.yaml, line 2: {message}" in faults_of(
        read, f"recipe: base\nsearch: {{train.lr: {search}}}\n"
    )


def test_a_run_named_twice_is_a_mistake(read) -> None:
    [line] = faults_of(read, "recipe: base\nsearch: {train.lr: {grid: [0.1, 0.10]}}\n")
    assert line == ("tried.yaml, line 2: train.lr: two trials are the same run: "
                    "lr=0.1 seed=7 and lr=0.1 seed=7")


def test_searching_what_cannot_change_a_result_is_a_mistake(read) -> None:
    [line] = faults_of(read, "recipe: base\nsearch: {run.threads: {grid: [1, 2]}}\n")
    assert line == ("tried.yaml, line 2: run.threads: two trials are the same run: "
                    "threads=1 seed=7 and threads=2 seed=7")


def test_samples_without_a_random_dimension_are_a_mistake(read) -> None:
    [line] = faults_of(read, "recipe: base\nsearch: {train.lr: {grid: [0.1]}}\nsamples: 3\n")
    assert line.startswith("tried.yaml, line 3: samples: 3 draws, but no searched key is random")


def test_seed_and_run_name_are_the_sweeps_own(read) -> None:
    lines = faults_of(
        read, "recipe: base\noverrides: {run.name: x}\nsearch: {seed: {grid: [1, 2]}}\n"
    )
    assert "tried.yaml, line 2: the sweep sets run.name; write name=..." in lines
    assert "tried.yaml, line 3: the sweep sets seed; write seeds=[...]" in lines


def test_an_override_of_a_searched_key_is_a_mistake(read) -> None:
    [line] = faults_of(read, "recipe: base\nsearch: {train.lr: {grid: [0.1]}}\n", "train.lr=3")
    assert line == (
        "command line, override 1: train.lr is searched already (tried.yaml, line 2)"
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [("resource.time=1h", "resources.time"), ("slrum.partition=gpu", "slurm.partition"),
     ("seed=[1,2]", None), ("sseds=[1,2]", "seeds"), ("trian.lr=1", None)],
)
def test_a_misspelt_key_of_the_sweep_is_known_by_its_nearest(
    read, word: str, meant: str | None
) -> None:
    [line] = faults_of(read, "recipe: base\n", word)
    suggested = f"no key {word.partition('=')[0]}; did you mean {meant}?"
    assert (line == f"command line, override 1: {suggested}") == (meant is not None)


def test_a_scheduler_without_ray_is_reported(read, caplog: pytest.LogCaptureFixture) -> None:
    file = "recipe: base\nscheduler: {asha: {}}\n"
    assert read(file).scheduler == Asha()
    assert ("tried.yaml, line 2: scheduler: asha has no effect without backend: ray; no trial is "
            "stopped early") in caplog.text
    caplog.clear()
    read(file, "backend=ray")
    assert caplog.text == ""
    [line] = faults_of(read, "recipe: base\nscheduler: {pbt: {}}\n")
    assert line == "tried.yaml, line 2: scheduler: pbt needs backend: ray"


def test_a_scheduler_nobody_has_is_named(read) -> None:
    [line] = faults_of(read, "recipe: base\nscheduler: {ahsa: {}}\n")
    assert line == "tried.yaml, line 2: scheduler: no scheduler 'ahsa'; did you mean asha?"
    [line] = faults_of(read, "recipe: base\nscheduler: {asha: {}, median: {}}\n")
    assert line == ("tried.yaml, line 2: scheduler: expected one of asha, hyperband, median, pbt, "
                    "found asha, median")
    assert read("recipe: base\nscheduler: none\n").scheduler is None
    assert read("recipe: base\nscheduler: asha\n").scheduler == Asha()
    assert read("recipe: base\n", "scheduler=median").scheduler == Median()
    assert read("recipe: base\nscheduler: {asha: {grace: 2}}\n",
                "scheduler.asha.reduction=5").scheduler == Asha(grace=2, reduction=5)


def test_a_sweep_without_a_recipe_is_reported(read) -> None:
    [line] = faults_of(read, "name: x\n")
    assert line == "tried.yaml: recipe: is needed, such as recipe: synthetic"


def test_recipes_may_be_searched_as_well(read, recipes: Path) -> None:
    (recipes / "other.yaml").write_text("train: {epochs: 9, name: wide}\nrun: {runs: here}\n")
    sweep = read(
        "search:\n  recipe: {grid: [base, other]}\n"
        "  train.lr: {grid: [0.1, 0.2], when: recipe == 'other'}\nseeds: [1]\n"
    )
    found = [(t.point, t.config.train.epochs, t.config.train.lr) for t in sweep.trials]
    assert found == [
        ({"recipe": "base"}, 6, 0.1),
        ({"recipe": "other", "train.lr": 0.1}, 9, 0.1),
        ({"recipe": "other", "train.lr": 0.2}, 9, 0.2),
    ]
    assert sweep.trials[0].title == "recipe=base seed=1"


def test_searched_recipes_that_are_invalid_are_reported(read) -> None:
    assert faults_of(read, "recipe: base\nsearch: {recipe: {grid: [base, bass]}}\n") == [
        "tried.yaml, line 1: recipe: is searched already (tried.yaml, line 2); leave one out",
        "tried.yaml, line 2: no recipe 'bass'; did you mean base?", "recipes: base",
    ]
    [line] = faults_of(read, "search: {recipe: {choice: [base]}}\n")
    assert line == "tried.yaml, line 1: recipe: expected {grid: [names of recipes]}"
    lines = faults_of(
        read, "backend: ray\nalgorithm: tpe\nsearch: {recipe: {choice: [base, bass]}}\n"
    )
    assert "tried.yaml, line 3: no recipe 'bass'; did you mean base?" in lines


def test_recipes_are_combined_under_one_name(read, recipes: Path, tmp_path: Path) -> None:
    (recipes / "parts").mkdir()
    (recipes / "parts" / "long.yaml").write_text("train: {epochs: 9}\n")
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.5}\n")
    sweep = read("recipe: base+long+mine.yaml\nseeds: [1]\n")
    assert [(t.config.train.epochs, t.config.train.lr) for t in sweep.trials] == [(9, 0.5)]
    options = {"schema": Config, "recipes": recipes}
    [trial], [former] = (read_sweep(n, **options).trials for n in ("base+long", "base_long"))
    assert trial.run == former.run
    assert trial.run.folder.parent == Path("here/base_long")
    [line] = faults_of(read, "search: {recipe: {grid: [base+long, base_long]}}\n")
    assert "two trials are the same run" in line


def test_a_dataset_is_not_looked_at_for_a_recipe_that_there_is_not(recipes: Path) -> None:
    def refuse(_: Config) -> Config:
        raise AssertionError("it was looked at")

    with pytest.raises(UserError, match="no recipe 'bass'"):
        read_sweep("bass", schema=Config, recipes=recipes, complete=refuse)
