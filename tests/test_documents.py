"""What documents say can be done can be done: every command, every example, every link.

Each command is carried out in a folder that holds what it speaks of under the very names that
documents use. What cannot be had is stood in for (INSTEAD), what would take minutes is stopped
where the work begins; a command that no rule fits fails, and asks for one (WAYS).
"""

import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import svll
from harness.reporting.page import Html
from harness.sweeps.reading import read_sweep
from launch.slurm import METRICS
from svll.config import RECIPES, Config
from tests.benchmarks.__main__ import PARTS
from tests.documents import PAGES, ROOT, SCRIPTS, TEXTS, blocks, commands, copied, furnish
from tests.gpu.checks import PARTS as GPU_PARTS

MAKE = shutil.which("make") or "make"
LOOKING = "--(dry-run|status|cancel|doctor|help-config)"
"""Options with which slurm.py starts no trial."""
INSTEAD = [
    (r"(evaluate|verify)\.py (--features )?FILE\b", r"\1.py \2features.h5"),
    (r"evaluate\.py \.\.\.", "evaluate.py features.h5"),
    # none are published here
    (r"--weights (FILE|model\.pth|ViT-B-16_60\.pth)", "--weights RUN_OR_FILE"),
    (r"split --root DIR --out FILE\.csv", "split --root own --out new.csv"),  # not there yet
    (r"--data DIR", "--data own"),
    (r"(data\.py|svll-data) synthetic --root DIR", r"\1 synthetic --root drawn"),
    (r"(drawn)(?!.*--size)", r"\1 --size 2"),  # drawing takes its time
    (r"--size \d+", "--size 2"),
    (r"runs\.py rm RUN$", "runs.py rm RUN --yes"),  # nobody is there to be asked
    (r"data\.name=folder data\.root=DIR", "data.name=folder data.root=world"),
    (r" --follow", ""),
    (rf"^(.*slurm(\.py)? (?!.*{LOOKING}).*)$", r"\1 --dry-run"),
    (r"^(.*slurm(\.py)? .*--dry-run(?!.*--cluster).*)$", r"\1 --cluster slurm"),
]
"""Words that become others, one after the other, before a command is carried out."""


def stop_before_the_work(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Replace the functions that train, measure, draw, export or need other machines."""
    result = folder / "RUN_OR_FILE" / "result.json"

    def execute(run: Any) -> str:
        shutil.copy(result, run.result_file)
        return "complete"

    def export(model: Any, out: Path, **_: Any) -> Any:
        out.touch()
        return SimpleNamespace(path=out, difference=0.0, images=1)

    for name, instead in {
        "harness.runs.execute.execute": execute,
        "svll.runs.cost_estimate.estimate": lambda *_: SimpleNamespace(
            groups=(), costs=(), precision="fp32"
        ),
        "svll.runs.profiling.profile_run": lambda *_: [],
        "svll.reports.sections.figures_section": lambda *_: Html(""),
        "svll.models.weights.onnx_export.export_onnx": export,
        "svll.models.weights.pretrain_tiny.pretrain": lambda *_, **__: {},
        "harness.cluster.doctor.diagnosis.diagnose": lambda *_, **__: 0,
        # miniature datasets have two identities, and recipes ask for sixteen at a time
        "svll.runs.preflight.check_batch": lambda *_: None,
        "typer.completion.install": lambda **_: ("bash", folder),  # not into anybody's shell
    }.items():
        patch.setattr(name, instead)


# --- ways to carry a command out; each returns what went wrong ---


def by_main(module: str, words: list[str], patch: pytest.MonkeyPatch) -> str:
    """Call a command's main function in this process."""
    patch.setattr(sys, "argv", words)
    patch.setattr(sys, "path", list(sys.path))
    told = io.StringIO()
    try:
        with redirect_stdout(told), redirect_stderr(told):
            importlib.import_module(module).main()
    except SystemExit as ended:
        return f"exit status {ended.code}: {told.getvalue()[-2000:]}" if ended.code else ""
    return "did not end by an exit status"


def by_script(words: list[str], patch: pytest.MonkeyPatch) -> str:
    if not (ROOT / words[1]).is_file():
        return f"no script {words[1]}"
    return by_main(f"launch.{Path(words[1]).stem}", words[1:], patch)


def by_name(words: list[str], patch: pytest.MonkeyPatch) -> str:
    return by_main(SCRIPTS[words[0]].partition(":")[0], words, patch)


def by_torchrun(words: list[str], patch: pytest.MonkeyPatch) -> str:
    """Have torch read its own options, and call the script as a single rank."""
    from torch.distributed.run import parse_args

    told = io.StringIO()
    try:
        with redirect_stderr(told):
            found = parse_args(words[1:])
    except SystemExit:
        return told.getvalue()
    return by_script(["python", found.training_script, *found.training_script_args], patch)


def by_existing(words: list[str], _: pytest.MonkeyPatch) -> str:
    """A measurement takes minutes or a cluster: that it can be started must do."""
    path = words[1] if words[1] != "-m" else f"{words[2].replace('.', '/')}.py"
    file = ROOT / path
    if not file.is_file() or '__name__ == "__main__"' not in file.read_text():
        return f"no program {path}"
    return ""


def by_pytest(words: list[str], _: pytest.MonkeyPatch) -> str:
    """Tests run tests elsewhere; here their paths and markers are looked up."""
    marks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    known = {mark.partition(":")[0] for mark in marks["markers"]} | {"not", "and", "or"}
    picked = words[words.index("-m", 2) + 1].split() if "-m" in words[2:] else []
    lost = [word for word in words[3:] if "/" in word and not (ROOT / word).exists()]
    return " ".join([*lost, *(word for word in picked if word not in known)])


def by_make(words: list[str], _: pytest.MonkeyPatch) -> str:
    """Have make say what it would do, and look up the part that is to be measured or checked."""
    done = subprocess.run([MAKE, "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    parts = [word.partition("=")[2] for word in words if word.startswith("PART=")]
    unknown = [part for part in parts if part not in (GPU_PARTS if "gpu" in words else PARTS)]
    return done.stderr if done.returncode else "".join(f"no part {part}" for part in unknown)


def by_metadata(words: list[str], _: pytest.MonkeyPatch) -> str:
    """Look up the extra that is to be installed; nothing is."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.fullmatch(r"\.\[(\w+)\]", words[-1])
    known = found is not None and found[1] in extras["optional-dependencies"]
    return "" if known else f"no extra {words[-1]}"


def by_makefile(words: list[str], _: pytest.MonkeyPatch) -> str:
    """`source .venv/bin/activate`: the environment that make sets up."""
    made = "-m venv .venv" in (ROOT / "Makefile").read_text()
    return "" if made and words[1] == ".venv/bin/activate" else f"make sets up no {words[1]}"


WAYS: dict[str, Callable[[list[str], pytest.MonkeyPatch], str]] = {
    r"python launch/": by_script, r"svll-": by_name, r"torchrun ": by_torchrun,
    r"python (-m )?tests[./]": by_existing, r"python -m pytest": by_pytest, r"make\b": by_make,
    r"pip install": by_metadata, r"source ": by_makefile,
}


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents") / "here"
    folder.mkdir()
    furnish(folder)
    return folder


@pytest.fixture
def carry_out(
    furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    """Return a function that carries out a command and returns what went wrong."""
    folder = copied(furnished, tmp_path / "here")
    stop_before_the_work(monkeypatch, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", "/nowhere")  # a cluster that is here must not be asked

    def carried_out(command: str) -> str:
        for pattern, words in INSTEAD:
            command = re.sub(pattern, words, command)
        for begin, way in WAYS.items():
            if re.match(begin, command):
                words = shlex.split(command)
                return way([name for word in words for name in expanded(word)], monkeypatch)
        return "not understood; WAYS in tests/test_documents.py must say how it is carried out"

    return carried_out


def expanded(word: str) -> list[str]:
    """Return what a shell makes of a word; what is meant for a command is quoted in `shards/*`."""
    return sorted(glob(word)) or [word] if word.startswith("runs/") else [word]


# --- tests ---

SHOWN = sorted({
    command for path in TEXTS for command in commands(path.read_text("utf-8"), path.suffix)
})


def test_commands_are_found_wherever_a_document_shows_them() -> None:
    page = (
        "Do `make test` or `svll-train --recipe x`; `make_it`, `--json` and `svll-tiny` are none.\n"
        "\n    make demo     # four trials\n    source a/b\n"
        "\n```\npython launch/a.py \\\n  --b 1\n```\n"
    )
    assert sorted(commands(page, ".md")) == [
        "make demo", "make test", "python launch/a.py --b 1", "source a/b",
        "svll-train --recipe x",
    ]
    code = (
        '"""Text.\n\n    python launch/a.py --b 1\n"""\n'
        'def c():\n    """C.\n\n        make c\n    """\n'
    )
    assert list(commands(code, ".py")) == ["python launch/a.py --b 1", "make c"]
    file = "# What?\n#   make a \\\n#     'b: c'\n# As often: python launch/d.py e\nf: make g\n"
    assert list(commands(file, ".yaml")) == ["make a 'b: c'", "python launch/d.py e"]
    files = {name: list(commands(path.read_text(), path.suffix)) for name, path in {
        path.relative_to(ROOT).as_posix(): path for path in TEXTS
    }.items()}
    assert len(files["README.md"]) > 30
    assert "make demo" in files["README.md"]
    assert len(files["launch/evaluate.py"]) == 8
    assert [name for name, found in files.items() if name.endswith(".yaml") and not found
            and "/parts/" not in name] == []


@pytest.mark.parametrize("command", SHOWN, ids=str)
def test_every_command_that_is_shown_can_be_given(
    command: str, carry_out: Callable[[str], str]
) -> None:
    assert carry_out(command) == ""


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("python launch/tarin.py --recipe synthetic", "no script launch/tarin.py"),
        ("python launch/train.py --recipe synthetik", "did you mean synthetic"),
        ("python launch/train.py --recipe synthetic stage1.lss_wieght=0", "did you mean"),
        ("python launch/train.py --recipe market1501 data.root=NOWHERE", "NOWHERE"),
        ("python launch/train.py --recipe synthetic --dry", "--dry"),
        ("python launch/slurm.py --sweep sweeps/gone.yaml --follow", "no such file"),
        ("python launch/slurm.py --sweep sweeps/pbt.yaml resource.gpus=1", "no key resource.gpus"),
        ("python launch/evaluate.py --features gone.h5", "gone.h5: no such file"),
        ("python launch/evaluate.py --features f.h5 --rerank --k3 1", "--k3"),
        ("python launch/report.py runs/loss_weights --compare 1 5", "there is no rank 5"),
        ("svll-report runs/gone", "runs/gone"),
        ("torchrun --nproc-per-knot 2 launch/train.py --recipe synthetic", "--nproc-per-knot"),
        ("torchrun --nproc-per-node 2 launch/train.py --recipe none", "no recipe 'none'"),
        ("python -m tests.benchmarks.gone", "no program tests/benchmarks/gone.py"),
        ("python -m pytest tests/gone.py -m slow", "tests/gone.py"),
        ("python -m pytest -m slowly", "slowly"),
        ("make tset", "tset"),
        ("make bench PART=gone", "no part gone"), ("make gpu PART=stage1", "no part stage1"),
        ("pip install '.[exprot]'", "no extra"),
        ("source .env/bin/activate", "make sets up no .env/bin/activate"),
        ("python setup.py install", "not understood"),
    ],
)
def test_a_command_with_a_mistake_is_found(
    command: str, told: str, carry_out: Callable[[str], str]
) -> None:
    assert told in carry_out(command)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    own = r"`((?:launch|svll|harness|tests|sweeps)/[\w./*-]*|[A-Z]\w+\.md)`"
    assert not [link for link in links if not (path.parent / link).exists()]
    assert not [name for name in re.findall(own, text)
                if not any(list(place.glob(name.rstrip("/"))) for place in (ROOT, path.parent))]
    if path.parent != ROOT:  # what a folder's page calls by a short name lies in that folder
        short = set(re.findall(r"`([\w*/]+\.py|\w+/)`", text)) - set(re.findall(own, text))
        assert short
        assert not [name for name in short if not list(path.parent.glob(name.rstrip("/")))]


@pytest.mark.parametrize("block", blocks((ROOT / "README.md").read_text("utf-8"), "yaml"))
def test_every_sweep_that_is_shown_is_one(block: str, furnished: Path, tmp_path: Path) -> None:
    shown = yaml.safe_load(block)
    if "search" not in shown:  # a part of a file
        shown |= {"recipe": "synthetic", "search": {"stage1.lr": {"uniform": [1e-3, 1e-2]}}}
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(shown, sort_keys=False))
    sweep = read_sweep(
        tmp_path / "shown.yaml", schema=Config, recipes=RECIPES, metrics=METRICS,
        overrides=[f"data.root={furnished / 'DIR'}"],
    )
    assert len(sweep.trials) + sweep.to_propose > 0


@pytest.mark.parametrize("block", blocks((ROOT / "README.md").read_text("utf-8"), "python"))
def test_every_program_that_is_shown_runs(
    block: str, furnished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(furnished)
    exec(compile(block, "README.md", "exec"), {})


def test_the_citation_tells_this_version_and_the_papers_that_the_readme_names() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert cited["cff-version"] == "1.2.0"
    assert cited["message"]
    assert [author["name"] for author in cited["authors"]] == ["The SVLL-ReID harness maintainers"]
    assert (cited["version"], cited["license"]) == (svll.__version__, project["license"])
    papers = re.findall(r"\((https://arxiv.org/[^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert {paper["url"] for paper in cited["references"]} == set(papers)
    assert f"## {svll.__version__} " in (ROOT / "CHANGELOG.md").read_text("utf-8")
