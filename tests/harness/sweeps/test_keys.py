"""The section `slurm` of a sweep file: what is written is what sbatch gets."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.config.sources import Setting, parse_overrides
from harness.config.yaml_files import parse
from harness.sweeps.keys import (
    FREE,
    SCHEDULERS,
    Asha,
    choose,
    entries,
    grid_words,
    read_slurm,
    sort_settings,
    sweep_texts,
)

NO_LETTERS = "a NUL character, or bytes that are not UTF-8, cannot be in a script"


@dataclass
class Config:
    seed: int = 1


def read(text: str, *words: str) -> tuple[dict[str, Any], list[str]]:
    """Return the options of a sweep file's text and of command-line words, and the faults."""
    faults: list[str] = []
    section = parse(text, sweep_texts(Config))[0]["slurm"] if text else None
    parts: dict[str, list[Setting]] = {key: [] for key in FREE}
    parts["slurm"] = entries(Setting("slurm", section, "file"), faults)
    settings = parse_overrides(words, sweep_texts(Config))
    sort_settings(settings, [], parts, Config, faults)
    return read_slurm(parts["slurm"], faults), faults


def test_options_of_sbatch_are_what_was_written_and_null_ones_are_left_out() -> None:
    options = {
        "account": "0123", "begin": "18:30", "comment": "on", "qos": "1.10", "exclusive": True,
        "requeue": False, "array_parallelism": 4, "env": {"A": "FALSE", "B": "22:30:00", "C": ""},
    }
    written = ("{account: 0123, begin: 18:30, comment: on, qos: 1.10, exclusive: true, "
               "requeue: False, array_parallelism: 4, partition: ~, "
               "env: {A: FALSE, B: 22:30:00, C: }}")
    assert read(f"slurm: {written}") == (options, [])
    assert read("", f"slurm={written}") == (options, [])
    assert read("slurm: {qos: high, comment: a b}", "slurm.account=1e5", "slurm.qos=null") == (
        {"account": "1e5", "comment": "a b"}, []
    )
    assert read("slurm:") == read("slurm: {}") == ({}, [])


@pytest.mark.parametrize("written", [
    "010", "1e3", "1_000", "0x1F", "0o17", "1.10", "-0", ".5", "2024-01-01", "22:30:00", "yes",
    "No", "on", "OFF", "true", "False", "nan", "-.inf", "=",
])
def test_a_word_in_the_section_slurm_is_its_own_text(written: str) -> None:
    options = {"comment": written, "env": {"A": written}, "setup": [written],
               "srun_args": [written]}
    text = (f"{{comment: {written}, env: {{A: {written}}}, setup: [{written}], "
            f"srun_args: [{written}]}}")
    assert read(f"slurm: {text}") == (options, [])
    assert read("", f"slurm={text}") == (options, [])
    assert read("", f"slurm.comment={written}") == ({"comment": written}, [])


@pytest.mark.parametrize(("line", "fault"), [
    ("exclusive: yes", "exclusive: write true or false, found 'yes'"),
    ("requeue: OFF", "requeue: write true or false, found 'OFF'"),
    ("hold: false", "hold: sbatch cannot negate it; write null to leave it out"),
    ("account:", "account: is empty; write a value, or null to leave it out"),
    ("qos: ''", "qos: is empty; write a value, or null to leave it out"),
    ("setup: [a, '']", "setup: expected a list of strings"),
    ("env: {A: [1]}", "env: A: expected one value, found ['1']"),
    ("array_parallelism: 0", "array_parallelism: expected an integer of at least 1, found '0'"),
    ("signal_delay_s: 9999999999",
     "signal_delay_s: expected an integer of at least 1, found '9999999999'"),
    ("env: {A\u00e9: 1}", "env: 'A\u00e9' is not a variable name"),
    ('comment: "a\\0b"', f"comment: 'a\\x00b': {NO_LETTERS}"),
    ('env: {A: "\\udcff"}', f"env: '\\udcff': {NO_LETTERS}"),
])
def test_empty_values_and_flags_that_cannot_be_negated_are_named(line: str, fault: str) -> None:
    assert read(f"slurm:\n  {line}\n")[1] == [f"file: slurm.{fault}"]
    key, _, value = line.partition(": ")
    told = [f"command line, override 1: slurm.{fault}"]
    assert read("", f"slurm.{key.rstrip(':')}={value}")[1] == told


def test_an_option_that_is_set_twice_is_a_mistake() -> None:
    assert read("slurm: {mem-per-cpu: 1GB, mem_per_cpu: 2GB}")[1] == [
        "file: slurm.mem_per_cpu: is set twice, also with - for _"
    ]


@pytest.mark.parametrize("value", [False, 0, "", []])
def test_a_scheduler_is_not_chosen_by_a_value_that_says_no(value: Any) -> None:
    faults: list[str] = []
    assert choose(SCHEDULERS, [Setting("asha", value, "file")], "scheduler", faults) is None
    assert faults == [f"file: scheduler.asha: expected a mapping, found {value!r}"]
    assert choose(SCHEDULERS, [Setting("asha", None, "file")], "scheduler", []) == Asha()


# --- words of a sweep without a file, and words of other tools ---


@dataclass
class Searched:
    seed: int = 1
    lr: float = 0.1
    augment: str = "mask"
    steps: list[int] = field(default_factory=list)
    roots: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=0.1,0.2", "search.lr={grid: [0.1,0.2]}"),
        ("lr=[0.1, 0.2]", "search.lr={grid: [0.1, 0.2]}"),
        ("lr=0.1", "lr=0.1"),
        ("augment=mask,swap", "search.augment={grid: [mask,swap]}"),
        ('augment="a,b"', 'augment="a,b"'),                         # one quoted text
        ("steps=[30,50]", "steps=[30,50]"),                         # one list
        ("steps=[30,50],[20]", "search.steps={grid: [[30,50],[20]]}"),
        ("roots={a: x}", "roots={a: x}"),
        ("lr={loguniform: [1e-4,1e-2]}", "search.lr={loguniform: [1e-4,1e-2]}"),
        ("seed=1,2", "seeds=[1,2]"),
        ("seed=[1,2]", "seeds=[1,2]"),
        ("seed=3", "seeds=[3]"),
        ("resources.cpus=2", "resources.cpus=2"),                   # not of a trial
        ("lr", "lr"),                                               # parse_overrides reports it
        ("lr=[0.1", "lr=[0.1"),
    ],
)
def test_words_with_several_values_become_a_search(typed: str, meant: str) -> None:
    assert grid_words([typed], Searched) == [meant]


@pytest.mark.parametrize(
    ("name", "ours"),
    [("ASHAScheduler", "asha"), ("HyperBandScheduler", "hyperband"), ("MedianStoppingRule",
     "median"), ("PopulationBasedTraining", "pbt"), ("ashaa", "asha")],
)
def test_other_names_of_a_scheduler_are_answered_with_ours(name: str, ours: str) -> None:
    faults: list[str] = []
    choose(SCHEDULERS, [Setting(name, None, "file")], "scheduler", faults)
    assert faults == [f"file: scheduler: no scheduler {name!r}; did you mean {ours}?"]


def test_other_names_of_a_schedulers_options_are_answered_with_ours() -> None:
    faults: list[str] = []
    settings = [Setting("asha", {"grace_period": 2, "reduction_factor": 3}, "file")]
    choose(SCHEDULERS, settings, "scheduler", faults)
    assert faults == ["file: scheduler.asha: no key grace_period; did you mean grace?",
                      "file: scheduler.asha: no key reduction_factor; did you mean reduction?"]
