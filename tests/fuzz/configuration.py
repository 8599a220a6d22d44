"""What users write as configuration: recipes, sweep files, words of command lines."""

import contextlib
import json
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import svll.search.search  # noqa: F401  torch: before the first input is tried
from harness.cluster.pages import write_summary
from harness.cluster.slurm import script
from harness.config.build import build
from harness.config.fields import field_types
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.sources import Setting
from harness.config.values import to_yaml, value_at
from harness.config.yaml_files import to_text
from harness.sweeps.reading import Sweep, expand, make_trial, read_sweep
from harness.sweeps.sweep_json import freeze, thaw
from harness.sweeps.sweep_results import read_outcomes
from launch.slurm import METRICS
from svll.config import RECIPES, Config
from svll.reuse.fingerprints import pin
from tests.fuzz.inputs import ODD_TEXTS, damaged, odd_texts
from tests.fuzz.trying import Target, command

KEYS = list(field_types(Config))
INTEGERS = (0, 1, -1, 2, 10**6, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 5e-324, 1e308, float("nan"), float("inf"))


def odd_values() -> SearchStrategy[Any]:
    """Return values of every type of YAML, at its ends."""
    plain = st.one_of(odd_texts(), st.sampled_from(INTEGERS), st.sampled_from(FLOATS),
                      st.none(), st.booleans())
    return st.one_of(plain, plain, st.lists(plain, max_size=3),
                     st.dictionaries(odd_texts(), plain, max_size=2))


def keys() -> SearchStrategy[str]:
    """Return keys of the schema, and some that it lacks."""
    return st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), odd_texts())


def dumped(value: Any) -> bytes:
    """Return YAML, of texts that are not Unicode too."""
    return to_text(value).encode("utf-8", "surrogateescape" if _is_bytes(value) else "replace")


def _is_bytes(value: Any) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        to_text(value).encode("utf-8", "surrogateescape")
        return True
    return False


# --- recipes ---

SPELLINGS = (
    ("seed: 7", "'seed': +7", "seed:   0x7   # seven", '"seed": &s 7', "seed: !!int 7"),
    ("stage1: {lr: 1e-4}", "stage1.lr: 0.0001", "stage1:\n  lr: 1.0E-4",
     "stage1:\n  lr:\n    .0001", "stage1: {<<: {lr: 1e-4}}", "stage1: {<<: {lr: 1}, lr: 1e-4}"),
    ("stage2: {milestones: [3, 5], margin: ~}", "stage2:\n  milestones:\n  - 3\n  - 5\n  margin:",
     "stage2.milestones: [ 3,5 , ]\n\nstage2.margin: null"),
    ("run: {name: 0123}", "run.name: '0123'", 'run: {"name": "0123"}', "run:\n    name:    0123",
     "run.name: !!str 0123", "run: {<<: {name: 0123}}"),
    ("model: {noun: no}", "model.noun: no # text", "model:\n  noun: 'no'"),
    ("data: {check: no}", "data.check: FALSE", "data:\n  # a comment\n  check: Off"),
)
"""Ways to write the same settings; a line of a recipe is one of each."""
SPELT = {"seed": 7, "stage1.lr": 1e-4, "stage2.milestones": [3, 5], "stage2.margin": None,
         "run.name": "0123", "model.noun": "no", "data.check": False}
LINES = (
    "a: &a {b: 1}", "seed: *a", "seed: !!int 010", "seed: !!float 1_0", "seed: !!timestamp 1",
    "seed: !!set {a}", "seed: !!binary x", "seed: 0x" + "f" * 4000, "extends: recipe",
    "extends: [synthetic, synthetic]", "extends: ../x", "extends: 5", "extends: " + "a" * 300,
    "with: {synthetic: {seed: 5}}", "with: {<<: {synthetic: {seed: 5}}}", "with: {no: 1}",
    "stage1: {<<: [{lr: 1}, {lr: 2}]}", "stage1: {<<: 5}", "<<: {seed: 5}", "? [a]\n: b",
    "\tseed: 1",
    "seed: ${stage1.epochs}", "run.name: ${run.wandb}{seed}\nrun.wandb: $", "seed: ${seed}",
    "run.name: ${run.wandb}\nrun.wandb: ${run.name}", "data.root: ${run.runs}/x", "---", "...",
    "run.runs: ~/x", "run.runs: $NOWHERE", 'run.runs: "~\\0"', 'run.name: "\\ud800"', "%YAML 9.9",
    'run.name: "\\UFFFFFFFF"', "stage2: " + "[" * 2000, "seed: " + "- " * 2000, "seed: 1\nseed: 2",
    "a: &a [" + "x," * 30 + "]\n" + "\n".join(
        f"{b}: &{b} [" + f"*{a}," * 30 + "]" for a, b in zip("abcdef", "bcdefg", strict=True)),
)
"""Lines that readers of YAML stumble over."""


def recipes() -> SearchStrategy[tuple[bytes, bool]]:
    """Return recipes, and whether each must mean what `SPELT` does."""
    odd_lines = st.one_of(
        st.sampled_from(LINES),
        st.tuples(keys(), st.sampled_from(ODD_TEXTS)).map(lambda line: f"{line[0]}: {line[1]}"),
    )
    texts = st.lists(odd_lines, min_size=1, max_size=4).map(
        lambda lines: "\n".join(["extends: synthetic_tiny", *lines]).encode("utf-8", "replace"))
    dumps = st.dictionaries(keys(), odd_values(), min_size=1, max_size=4).map(dumped)
    odd = st.one_of(damaged((RECIPES / "synthetic_tiny.yaml").read_bytes()), texts, dumps)
    same = st.tuples(
        st.tuples(*map(st.sampled_from, SPELLINGS)).flatmap(st.permutations),
        st.sampled_from(("\n", "\r\n", "\n\n", "\n# x\n", "   \n")),
        st.sampled_from(("", "\ufeff", "---\n", "# ü\n")), st.sampled_from(("", "\n", "\n...\n")),
    ).map(lambda parts: (parts[2] + parts[1].join(parts[0]) + parts[3]).encode())
    return st.one_of(*(st.tuples(one, st.just(False)) for one in (odd, odd, odd)),
                     st.tuples(same, st.just(True)))


def read(value: tuple[bytes, bool], folder: Path) -> None:
    """Read a recipe; what it resolves to reads back as the same configuration."""
    content, is_spelt = value
    (folder / "recipe.yaml").write_bytes(content)
    config = build(Config, read_recipe(folder / "recipe.yaml", Config, RECIPES))
    (folder / "again.yaml").write_text(to_yaml(config), "utf-8")
    again = build(Config, read_recipe(folder / "again.yaml", Config))
    assert again == config
    assert signature(again) == signature(config)
    if is_spelt:
        assert config == build(Config, [Setting(k, v, "here") for k, v in SPELT.items()])


# --- sweeps ---

RANGES = ("uniform", "loguniform", "randint")
SEARCHED = ("stage2.lr", "stage2.vss_weight", "stage1.epochs", "stage2.margin", "model.noun",
            "stage2.erase_area", "stage1.train_head", "data.test", "recipe", "run.wandb")
CONDITIONS = (
    "stage2.lr < 1", "stage2.lr > 1", "stage2.margin > 0", "9**9**9 > stage2.lr", "(" * 500,
    "not " * 300 + "stage2.lr", "-" * 3000 + "stage2.lr > 0", "model.noun * 9999999999 == 'a'",
    "stage2.lr * 1" + "0" * 400 + " > 0.5", "1" + "0" * 400 + " / stage1.epochs > 1",
    "stage2.lr > 1j", "model.noun == b'a'", "stage2.lr in 5", "stage2.lr == ...", "seed > 1",
    "stage2.lr + " * 2000 + "1 > 0", "model.noun + 'a' in ['a']", "recipe == 'synthetic'",
    "stage1.epochs / 0 > 1", "stage1.epochs - 1e999 < 0", "stage2.lr\n< 1", "stage2.erase_area > 1",
)


def sweeps() -> SearchStrategy[bytes]:
    """Return sweep files: a valid one with odd parts."""
    numbers = st.one_of(st.sampled_from(INTEGERS), st.sampled_from(FLOATS), st.floats(1e-6, 1),
                        st.integers(1, 9), odd_texts())
    spaces = st.one_of(
        st.tuples(st.sampled_from(("grid", "choice")), st.lists(odd_values(), max_size=4)),
        st.tuples(st.sampled_from(("grid", "choice")),
                  st.lists(st.sampled_from((0.1, 0.10, 1, 1.0, "1e-4", 1e-4, 2)), max_size=4)),
        st.tuples(st.sampled_from(RANGES), st.lists(numbers, min_size=2, max_size=2)),
        st.tuples(st.sampled_from(RANGES),
                  st.sampled_from(([0.1, 0.2], [1, 9], [1.0000001, 1.00000011]))),
        odd_texts().map(lambda kind: (kind, [1])),
    ).map(lambda pair: dict([pair]))
    conditions = st.one_of(st.sampled_from(CONDITIONS), odd_texts())
    dimensions = st.one_of(spaces, spaces, st.tuples(spaces, conditions).map(
        lambda pair: {**pair[0], "when": pair[1]}), odd_values())
    search = st.one_of(
        st.dictionaries(st.one_of(st.sampled_from(SEARCHED), keys()), dimensions, max_size=3),
        st.just({key: {"grid": list(range(1, 200))} for key in SEARCHED}),
    )
    texts = st.dictionaries(odd_texts(), odd_values(), max_size=2)
    options = st.dictionaries(
        st.one_of(st.sampled_from(("account", "comment", "env", "setup", "exclusive", "mem-per-cpu",
                                   "array_parallelism", "nice", "chdir", "python")), odd_texts()),
        st.one_of(odd_values(), texts), max_size=3)
    parts: dict[str, SearchStrategy[Any]] = {
        "samples": st.sampled_from((1, 2, 3, 10**9, 0, "5", 1.0)), "slurm": options,
        "constraints": st.one_of(st.lists(conditions, max_size=2), odd_values()),
        "seeds": st.sampled_from(([1], [1, 1], [1, 2], [], [-1], [2**64], ["1"], 3, [True], [1.0])),
        "search_seed": st.sampled_from((0, 1, -1, 10**30, 2**40)), "name": odd_texts(),
        "metric": st.one_of(st.sampled_from(METRICS), odd_values()),
        "overrides": st.dictionaries(keys(), odd_values(), max_size=2),
        "resources": st.dictionaries(
            st.sampled_from(("nodes", "gpus", "tasks", "cpus", "time", "memory", "max_time_outs")),
            st.one_of(odd_values(),
                      st.sampled_from(("9" * 400 + "h", "9" * 400 + "GB", "1h", "٣h"))),
            max_size=2),
        "scheduler": odd_values(), "algorithm": st.one_of(st.just("tpe"), odd_values()),
        "objectives": odd_values(), "backend": st.sampled_from(("ray", "array", 1)),
        "recipe": st.one_of(odd_texts(), st.just("synthetic_tiny+no_such")),
    }
    chosen = st.lists(st.sampled_from(list(parts)), unique=True, max_size=3).flatmap(
        lambda names: st.fixed_dictionaries({name: parts[name] for name in names}))
    files = st.tuples(search, chosen).map(
        lambda two: dumped({"recipe": "synthetic_tiny", "search": two[0], **two[1]}))
    return st.one_of(files, files, files, damaged(SWEEP.encode()))


SWEEP = """recipe: synthetic_tiny
search:
  stage2.lr: {loguniform: [1e-6, 1e-3]}
  stage2.vss_weight: {grid: [0, 0.8], when: stage2.lr < 5e-4}
samples: 3
seeds: [1, 2]
constraints: [stage2.lr > 2e-6]
resources: {cpus: 2, time: 1h}
slurm: {account: 0123, env: {A: "", B: 22:30:00}, setup: [module load cuda]}
metric: mAP
"""


def read_sweep_file(content: bytes, folder: Path) -> None:
    """Read a sweep; its trials are those of the file read again and of what is stored of it."""
    file = folder / "tried.yaml"
    file.write_bytes(content)
    reads = partial(read_sweep, file, schema=Config, recipes=RECIPES, metrics=METRICS,
                    overrides=[f"run.runs={folder}"], complete=partial(pin, seen={}))
    sweep = reads()
    trials = expand(sweep)
    names = [trial.signature for trial in trials]
    assert len(set(names)) == len(names)
    assert [trial.signature for trial in reads().trials] == names
    for trial in trials:
        for key, value in trial.point.items():
            found = value_at(trial.config, key) if key != "recipe" else value
            assert (list(found) if isinstance(found, tuple) else found) == value
    again = thaw(json.loads(json.dumps(freeze(sweep))))
    for trial in trials[:3]:
        seed = Setting("seed", trial.seed, "here")
        assert make_trial(again, 0, trial.point, seed).signature == trial.signature
    write_summary(sweep)
    stored = read_outcomes(sweep.folder).outcomes
    assert [(one.point, one.seed, one.run.signature) for one in stored] == [
        (trial.point, trial.seed, trial.signature) for trial in trials]
    _check_script(sweep)


def _check_script(sweep: Sweep) -> None:
    """An option of sbatch in the script is what the file says, of which SLURM reads backslashes."""
    lines = script.script(sweep, 2).encode().decode().splitlines()
    for key, value in sweep.slurm.items():
        name = f"--{key.replace('_', '-')}"
        if isinstance(value, str) and key not in ("python", "job_name"):
            [found] = [shlex.split(line, posix=True)[1] for line in lines
                       if line.startswith(f"#SBATCH {name}=")]
            assert found.replace("\\\\", "\\") == f"{name}={value}"


# --- words of command lines ---

BROKEN = "stage1.epochs=many"
STARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": ((BROKEN,), (BROKEN, "--recipe", "synthetic_tiny"), ("--help-config",)),
    "slurm": (("--status",), ("--status", "--recipe", "synthetic_tiny"),
              ("--status", "--sweep", "loss_weights"), ("--help-config",)),
    "data": (("check",), ("check", "folder", "--root", "no"), ("split", "--root", "no"), ()),
    "evaluate": ((), ("no.h5",), ("no.h5", "--rerank"), ("--weights", "no.pth", "--recipe", "no")),
    "features": ((), ("no.h5", "--save", "x.h5"), ("--weights", "no.pth", "--recipe", "no")),
    "verify": ((), ("no.h5",)),
    "search": ((), ("--weights", "no.pth", "--query", "no", "--gallery", "no")),
    "report": ((), ("no",), ("no", "--ranked")),
    "export": ((), ("--weights", "no.pth", "--out", "x.onnx")),
    "pretrain": (("--no-such-option",), ("--help",)),
}
"""First words of commands that neither train nor submit, whatever else is given."""
OPTIONS = (
    "--recipe", "--sweep", "--help", "--dry-run", "--jobs", "--first", "--root", "--out", "--k1",
    "--k2", "--weight", "--expand", "--alpha", "--top-k", "--threshold", "--at-fpr", "--protocol",
    "--per-query", "--save", "--gallery", "--features", "--cameras", "--compare", "--query", "--",
    "--images", "--camera", "--height", "--test", "--seed", "--format", "--json", "--bootstrap",
)
WORDS = (
    "search={stage2.lr: {grid: [1e-4, 0.001, '1e-4']}}", "search.stage2.lr={grid: [1, 1.0]}",
    "search={stage2.lr: {uniform: [0, 1]}}", "samples=1000000000", "seeds=[1,1]", "seeds=[1,2]",
    "search={a", "search=5", "slurm.env={A: }", "slurm.account=0123", "constraints=[9**9**9 > 1]",
    "resources.time=" + "9" * 400 + "h", "seed=1_000", "seed=0123", "seed=1e3", "seed=" + "1" * 30,
    "stage2.lr=1e400", "stage2.lr=.nan", "stage2.margin=-.inf", "run.name=12:30", "data.check=no",
    "run.runs=~/x", "run.runs=$NOWHERE", "seed=[1", "seed=5 #", "run.name= a ", "run.name=", "=",
    "seed", "seed==5", "a=b=c", "name=", "overrides.seed=5", "algorithm=tpe", "backend=ray",
)


def command_words() -> SearchStrategy[tuple[str, list[str]]]:
    """Return a command's script and its words."""
    settings = st.tuples(keys(), odd_texts()).map("=".join)
    odd = st.one_of(odd_texts(), st.sampled_from(WORDS), settings, st.sampled_from(OPTIONS),
                    st.binary(max_size=9).map(os.fsdecode)).filter(_is_word)
    pairs = st.lists(odd, max_size=5)
    return st.sampled_from([(name, start) for name, starts in STARTS.items() for start in starts]
                           ).flatmap(lambda one: st.tuples(st.just(one[0]), pairs.map(
                               lambda more: [*one[1], *more])))


def _is_word(text: str) -> bool:
    """Return whether a shell can pass a word."""
    with contextlib.suppress(UnicodeEncodeError):
        return b"\0" not in os.fsencode(text)
    return False


def give(value: tuple[str, list[str]], folder: Path) -> None:
    """Give a command some words; it writes nothing outside of its folder."""
    name, words = value
    inside = folder / "a" / "b"
    inside.mkdir(parents=True)
    with contextlib.chdir(inside), mock.patch.dict(os.environ, {"HOME": str(inside)}):
        command(name, *words)
    assert os.listdir(folder) == ["a"]


TARGETS = [
    Target("recipes", recipes(), read, examples=50),
    Target("sweeps", sweeps(), read_sweep_file, examples=35),
    Target("command_words", command_words(), give, examples=50),
]
