"""The sbatch script, and answers of SLURM, without a SLURM."""

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.base.errors import UserError
from harness.cluster.slurm import script as slurm
from harness.cluster.slurm.place import Slurm
from harness.config.sources import Setting
from harness.sweeps.keys import read_slurm


def directives(sweep, count: int = 3) -> dict[str, str]:
    lines = slurm.script(sweep, count).splitlines()
    found = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    return {key: value for key, _, value in (line.partition("=") for line in found)}


def test_resources_become_sbatch_options(toy: ModuleType, tmp_path: Path) -> None:
    sweep = toy.make_sweep(
        tmp_path, {},
        resources={"nodes": 2, "gpus": 4, "cpus": 8, "time": "1d12h", "memory": "1.5GB"},
        slurm={"partition": "gpu", "array_parallelism": 2, "licenses": "matlab:1", "no_kill": True,
               "mail-type": "END"},
    )
    found = directives(sweep, count=5)
    assert found["nodes"] == "2"
    assert found["gpus-per-node"] == "4"
    assert found["ntasks-per-node"] == "4"
    assert found["cpus-per-task"] == "8"
    assert found["time"] == "2160"
    assert found["mem"] == "1536MB"
    assert found["array"] == "0-4%2"
    assert found["partition"] == "gpu"
    assert found["licenses"] == "matlab:1"
    assert found["mail-type"] == "END"
    assert found["no-kill"] == found["requeue"] == ""
    assert "wckey" not in found


def test_srun_gets_the_cores_that_it_would_otherwise_ignore(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, resources={"cpus": 6},
        slurm={"srun_args": ["--cpu-bind=cores"], "python": "apptainer exec my.sif python"},
    )
    [command] = [line for line in slurm.script(sweep, 1).splitlines() if line.startswith("srun")]
    words = shlex.split(command)
    assert "--cpus-per-task=6" in words
    assert "--cpu-bind=cores" in words
    assert words[-8:-1] == ["apptainer", "exec", "my.sif", "python", "-u", "-m",
                            "submitit.core._submit"]


def test_what_enters_a_container_comes_before_python_and_its_variables_are_the_jobs(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "its own")
    wrap = ["echo", "--bind=$WHERE", 'a "b" `c` \\', "it's"]
    sweep = toy.make_sweep(tmp_path, {}, slurm={"wrap": wrap})
    [command] = [line for line in slurm.script(sweep, 1).splitlines() if line.startswith("srun")]
    found = subprocess.run(["bash", "-c", command[command.index('"echo"'):]],
                           capture_output=True, text=True, check=True).stdout
    assert found.startswith(f'--bind=its own a "b" `c` \\ it\'s {sys.executable} -u -m submitit')


def test_no_words_before_python_are_no_container(toy: ModuleType, tmp_path: Path) -> None:
    sweep = toy.make_sweep(tmp_path, {}, slurm={"wrap": []})
    assert "inside" not in Slurm().describe(sweep, 1, None)
    assert slurm.python_of(sweep) == shlex.quote(sys.executable)


def test_the_paths_that_a_container_must_have_are_the_sweeps_the_configurations_and_pythons(
    toy: ModuleType, tmp_path: Path
) -> None:
    photos = str(tmp_path / "photos")
    Path(photos).mkdir()
    for name, further in (("", {}), ("other", {"python": "python3"})):
        sweep = toy.make_sweep(
            tmp_path / name, {}, slurm={"wrap": ["apptainer", "exec", "a.sif"], **further},
            recipe={"run": {"runs": str(tmp_path / name / "runs"), "photos": photos}},
        )
        paths = {str(tmp_path / name / "runs"), photos, os.getcwd()}
        paths |= set() if further else {sys.prefix}
        inner = {one for one in paths for other in paths if one.startswith(f"{other}/")}
        assert slurm.inside(sweep) == sorted(paths - inner)
        described = Slurm().describe(sweep, 1, None)
        assert f"same paths: {', '.join(sorted(paths - inner))}; and SLURM's" in described


def test_setup_and_environment_come_before_the_command_and_are_quoted(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, slurm={"setup": ["module load cuda"], "env": {"A": "x; rm -rf $HOME", "B": 1}}
    )
    lines = slurm.script(sweep, 1).splitlines()
    assert lines.index("export A='x; rm -rf $HOME'") < lines.index("module load cuda")
    assert "export B=1" in lines
    assert lines.index("module load cuda") < next(
        n for n, line in enumerate(lines) if line.startswith("srun")
    )


def test_frozen_code_comes_before_what_a_module_puts_into_the_search_path(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, slurm={"setup": ["module load cuda"]})
    assert not any("PYTHONPATH" in line for line in slurm.script(sweep, 1).splitlines())
    frozen = dataclasses.replace(sweep, code=tmp_path / "a b" / "code")
    lines = slurm.script(frozen, 1).splitlines()
    place = shlex.quote(str(tmp_path / "a b" / "code"))
    here = shlex.quote(os.getcwd())
    own = f"export PYTHONPATH={place}${{PYTHONPATH:+:$PYTHONPATH}}:{here} PYTHONSAFEPATH=1"
    assert lines.index(own) == lines.index("module load cuda") + 1


def test_other_ways_to_ask_for_gpus_and_memory_replace_ours(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, resources={"gpus": 2, "memory": "8GB"},
        slurm={"gres": "gpu:a100:2", "mem_per_cpu": "2GB", "requeue": False},
    )
    found = directives(sweep)
    assert found["gres"] == "gpu:a100:2"
    assert found["mem-per-cpu"] == "2GB"
    assert found["no-requeue"] == ""
    assert not {"gpus-per-node", "mem", "requeue"} & found.keys()
    tiny = toy.make_sweep(tmp_path, {}, resources={"memory": "0.1MB"}, slurm={"no_requeue": True})
    assert directives(tiny)["mem"] == "1MB"  # 0 would be all memory of the node
    assert not {"requeue"} & directives(tiny).keys()


@pytest.mark.parametrize(
    ("options", "resources", "count"),
    [
        ({}, {}, 0), ({}, {"gpus": 2}, 2), ({"gres": "lustre:1"}, {"gpus": 2}, 2),
        ({"gres": "gpu"}, {}, 1), ({"gres": "lustre:3,gpu:a100:2"}, {}, 2),
        ({"gres": "gpu:a100"}, {}, 1), ({"gres": "gpu:a:2,gpu:b:1"}, {}, 3),
        ({"gres": "shard:8"}, {}, 1), ({"gpus": "8"}, {"nodes": 2, "tasks": 4}, 4),
        ({"gpus": "volta:2,kepler:1"}, {}, 3), ({"gpus_per_task": "1"}, {"tasks": 3}, 3),
        ({"gpus_per_task": "a100:2"}, {"tasks": 2}, 4),
    ],
)
def test_gpus_are_counted_however_they_are_requested_and_hidden_where_none_are(
    toy: ModuleType, tmp_path: Path, options: dict[str, str], resources: dict[str, int], count: int
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, resources=resources, slurm=options)
    assert slurm.gpus_per_node(sweep) == count
    found, lines = directives(sweep), slurm.script(sweep, 1).splitlines()
    by_us = count if "gpus" in resources else None
    assert found.get("gpus-per-node") == (by_us and str(by_us))
    assert ("export CUDA_VISIBLE_DEVICES=''" in lines) == (count == 0)
    assert f"export SVLL_NO_GPU={int(count == 0)}" in lines


@pytest.mark.parametrize(
    ("options", "resources", "backend", "fault"),
    [
        ({"gres": "gpu:2"}, {"tasks": 4}, "array",
         "gpu:2 requests 2 GPUs on a node for 4 ranks (resources.tasks), and each needs one"),
        ({"gpus": "4"}, {"tasks": 4, "nodes": 2}, "array",
         "4 requests 2 GPUs on a node for 4 ranks (resources.tasks), and each needs one"),
        ({"gres": "gpu:2"}, {"gpus": 4}, "array", "gpu:2 requests 2 GPUs on a node, resources.gpus "
         "4; set one of them only, or both alike"),
        ({"gres": "gpu:2"}, {}, "ray", "Ray gives GPUs to trials by resources.gpus, which requests "
         "none; set it too"),
    ],
)
def test_options_that_give_ranks_too_few_gpus_are_refused(
    toy: ModuleType, tmp_path: Path, options: dict[str, str], resources: dict[str, int],
    backend: str, fault: str,
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, resources=resources, slurm=options, backend=backend)
    with pytest.raises(UserError) as caught:
        slurm.script(sweep, 1)
    assert str(caught.value) == f"slurm.{next(iter(options))}: {fault}"


def test_options_that_have_a_key_of_their_own_are_refused_together(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, slurm={"time": 3, "cpus-per-task": 2, "array": "1-3"})
    with pytest.raises(UserError) as caught:
        slurm.script(sweep, 1)
    assert set(str(caught.value).splitlines()) == {
        "slurm.time: use resources.time", "slurm.cpus_per_task: use resources.cpus",
        "slurm.array: cannot be changed",
    }


@pytest.mark.filterwarnings("ignore:.*cpus_per_gpu")
def test_an_option_of_any_type_is_refused_or_is_in_the_script(
    toy: ModuleType, tmp_path: Path
) -> None:
    options = {"python", "env", *slurm._executor_class()._valid_parameters()}
    options -= {*slurm.OURS, *slurm.REFUSED}
    sweep, refused = toy.make_sweep(tmp_path, {}), set()
    for option in sorted(options):
        for value in ("x", "2", "0", "-1", "1.5", "true", ["x"], {"A": "1"}):
            faults: list[str] = []
            found = read_slurm([Setting(option, value, "here")], faults)
            if faults:
                assert faults[0].startswith(f"here: slurm.{option}: expected")
                refused.add((option, repr(value)))
            else:
                slurm.script(dataclasses.replace(sweep, slurm=found), 3)
    assert {("array_parallelism", "'x'"), ("signal_delay_s", "'x'"), ("teardown", "'x'"),
            ("account", "['x']")} <= refused
    assert not {("array_parallelism", "'2'"), ("teardown", "['x']"), ("account", "'2'")} & refused


def test_only_flags_stand_without_a_value(toy: ModuleType, tmp_path: Path) -> None:
    options = {"comment": True, "account": True, "gres": True, "hold": True, "exclusive": True,
               "nice": "010"}
    found = directives(toy.make_sweep(tmp_path, {}, slurm=options))
    assert {key: found[key] for key in options} == {
        "comment": "true", "account": "true", "gres": "true", "hold": "", "exclusive": "",
        "nice": "010",
    }


def test_variables_of_sbatch_are_defaults_of_the_sweep_or_have_no_effect(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SBATCH_ACCOUNT": "lab", "SBATCH_QOS": "high", "SBATCH_TIMELIMIT": "1",
             "SBATCH_ARRAY_INX": "0-5", "SBATCH_PARTITION": "", "SLURM_CLUSTERS": "moon"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sweep = toy.make_sweep(tmp_path, {}, slurm={"qos": "low"})
    found = directives(sweep)
    assert (found["account"], found["qos"], found["time"]) == ("lab", "low", "10")
    assert "partition" not in found
    assert slurm.variables(sweep) == [
        "SBATCH_ACCOUNT=lab is used, because slurm.account is not set",
        "ignored: SBATCH_ARRAY_INX, SBATCH_PARTITION, SBATCH_QOS, SBATCH_TIMELIMIT, "
        "SLURM_CLUSTERS; set slurm.KEY or resources.KEY instead",
    ]
