"""Rules of the house that hold for every file: imports, configuration keys, recipes, writing."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from harness.cluster.ray import plan as ray_plan
from harness.config.build import build
from harness.config.recipes import named_recipe, read_recipe
from harness.config.sources import Setting
from harness.config.yaml_files import read_yaml
from harness.sweeps.reading import read_sweep
from launch.slurm import METRICS
from svll.config import RECIPES, SWEEPS, Config

ROOT = Path(__file__).parent.parent
PACKAGES = ("harness", "svll", "launch")
BELOW = {"harness": set(), "svll": {"harness"}, "launch": {"harness", "svll"}}
"""What each package may import, besides itself."""
HEAVY = {
    "matplotlib", "torch", "torchvision", "deepspeed", "ray", "nvidia", "open_clip", "numba",
    "wandb",
}
LIGHT = [
    *(f"harness/{package}/**/*.py" for package in (
        "cluster", "config", "features", "reporting", "runs", "sweeps",
    )),
    *(f"harness/base/{name}.py" for name in (
        "errors", "files", "machine", "paths", "rng", "units",
    )),
    "harness/training/progress.py", "harness/training/wandb.py",
    "svll/__init__.py", "svll/config.py", "svll/base/*.py", "svll/data/**/*.py", "launch/*.py",
]
"""Files that commands import which must start at once."""
INSIDE_RAY = {f"harness/cluster/ray/{name}.py" for name in ("driver", "schedulers")}
"""Files of a search's driver, a process that needs Ray anyway."""
OWN_WRITERS = {
    "harness/base/files.py": "the helper itself",
    "harness/cluster/local/claims.py": "files that the kernel locks: replaced, they had no lock",
    "harness/cluster/ray/nodes.py": "a token that nobody else may read, not even for a moment",
}
MAX_LINES = 500
MAX_FILES = 12
"""In one package, besides `__init__.py`: as many as can be looked over."""
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
WIDE = {"evaluate_ranking"}
"""Functions with more parameters: others call them, so their signatures stay."""
ROOTLESS = ("synthetic",)
"""Datasets that need no folder of the user's."""


def files(*patterns: str) -> list[Path]:
    found = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
    assert found, patterns
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def trees(*patterns: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield (name below the root, parsed file)."""
    for path in files(*patterns):
        yield path.relative_to(ROOT).as_posix(), parsed(path)


def calls(*packages: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield (file and line, call) for every call in some packages."""
    for name, tree in trees(*everything(*packages)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", node


def everything(*packages: str) -> list[str]:
    return [f"{package}/**/*.py" for package in packages]


# --- imports ---


def imported(node: ast.AST) -> set[str]:
    """Top-level packages that one statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written in full"
        return {(node.module or "").partition(".")[0]}
    return set()


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when a module is imported: no function bodies, nothing for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from at_module_level(child)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way_from_launch_to_svll_to_harness(package: str) -> None:
    others = set(PACKAGES) - {package} - BELOW[package] | {"tests"}
    wrong = [
        f"{name}:{node.lineno}"  # type: ignore[attr-defined]
        for name, tree in trees(*everything(package)) for node in ast.walk(tree)
        if imported(node) & others
    ]
    assert not wrong


def test_heavy_packages_are_not_imported_at_module_level_where_commands_start() -> None:
    wrong = [
        f"{name}:{node.lineno}"  # type: ignore[attr-defined]
        for name, tree in trees(*LIGHT) if name not in INSIDE_RAY
        for node in at_module_level(tree) if imported(node) & HEAVY
    ]
    assert not wrong


def test_yaml_is_read_and_written_in_one_file() -> None:
    users = {
        name for name, tree in trees(*everything(*PACKAGES)) for node in ast.walk(tree)
        if "yaml" in imported(node)
    }
    assert users == {"harness/config/yaml_files.py"}


def test_cores_are_counted_in_one_place_which_knows_a_containers_quota() -> None:
    sources = files(*(f"{package}/**/*.py" for package in PACKAGES))
    assert [path for path in sources if "len(os.sched_getaffinity" in path.read_text()] == []


def test_importing_what_commands_start_with_loads_nothing_heavy() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files(*LIGHT) if str(path.relative_to(ROOT)) not in INSIDE_RAY
    ]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = set(sys.argv[1].split(',')) & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{name} loads {heavy}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(HEAVY), *modules], cwd=ROOT,
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# --- configuration ---


def rooted(recipe: str) -> list[str]:
    """What a user would add to a recipe of a dataset that has to be downloaded."""
    names = [s.value for s in named_recipe(recipe, Config, RECIPES) if s.key == "data.name"]
    return [] if not names or names[-1] in ROOTLESS else ["data.root=/data"]


@pytest.mark.parametrize("path", files("svll/recipes/*.yaml"), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    extra = [Setting("data.root", word.partition("=")[2], "test") for word in rooted(path.stem)]
    assert build(Config, [*read_recipe(path, Config), *extra])


@pytest.mark.parametrize("path", files("sweeps/*.yaml"), ids=lambda path: path.stem)
def test_every_sweep_loads(path: Path) -> None:
    said = read_yaml(path)[0]
    names = [said["recipe"]] if "recipe" in said else said["search"]["recipe"]["grid"]
    extra = {word for name in names for word in rooted(name)}
    sweep = read_sweep(path, schema=Config, recipes=RECIPES, overrides=extra, metrics=METRICS)
    assert sweep.name == path.stem
    assert len(sweep.trials) + sweep.to_propose >= 2
    if sweep.backend == "ray":
        ray_plan.check(sweep)


@pytest.mark.parametrize(
    "path", files("svll/recipes/**/*.yaml", "sweeps/*.yaml"), ids=lambda path: path.stem
)
def test_every_recipe_and_sweep_begins_with_the_command_that_runs_it(path: Path) -> None:
    comments = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comments.append(line)
    assert any(
        "python launch/" in line and (path.stem in line or path.name in line) for line in comments
    )


def test_recipes_and_sweeps_that_are_found_by_name_are_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["svll"]
    packed = set(files(*(f"svll/{pattern}" for pattern in patterns)))
    assert {*RECIPES.rglob("*.yaml"), *SWEEPS.glob("*.yaml")} <= packed
    assert {path.name for path in SWEEPS.iterdir()} == {path.name for path in files("sweeps/*")}


# --- files ---


def test_no_file_is_over_500_lines() -> None:
    patterns = everything(*PACKAGES, "tests")
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in files(*patterns) if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_functions_fill_a_screen_at_most_and_take_few_parameters() -> None:
    wrong = []
    for name, tree in trees(*everything(*PACKAGES)):
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            is_command = name.startswith("launch/")  # its parameters are options, each with a help
            first = node.body[0] if is_command else node
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(one.arg not in ("self", "cls") for one in given)
            is_kernel = any(ast.unparse(one) == "kernel" for one in node.decorator_list)
            if node.end_lineno - first.lineno >= MAX_FUNCTION_LINES:  # type: ignore[operator]
                wrong.append(f"{name}: {node.name} is too long")
            if count > MAX_PARAMETERS and not (is_command or is_kernel or node.name in WIDE):
                wrong.append(f"{name}: {node.name} has {count} parameters")
    assert not wrong


def test_no_package_has_more_files_than_can_be_looked_over() -> None:
    counts = Counter(path.parent for path in files(*everything(*PACKAGES))
                     if path.name != "__init__.py")
    assert {str(p.relative_to(ROOT)): n for p, n in counts.items() if n > MAX_FILES} == {}


def test_harness_and_svll_log_and_never_print() -> None:
    wrong = [
        where for where, call in calls("harness", "svll") if ast.unparse(call.func) == "print"
        # to a pipe that one process of ours reads is no printing
        and not any(k.arg == "file" and "sys." not in ast.unparse(k.value) for k in call.keywords)
    ]
    assert not wrong


def opens_for_writing(node: ast.Call) -> bool:
    """Whether a call opens or replaces a file under its own name; appending is for logs."""
    function = ast.unparse(node.func)
    last = function.split(".")[-1]
    private = function.startswith("private.") or (
        bool(node.args) and ast.unparse(node.args[0]).startswith("private")
    )
    if function == "os.open":
        return "O_CREAT" in ast.unparse(node)
    if last in ("write_text", "write_bytes"):
        return not private and function != "write_text"
    if last in ("open", "File"):
        position = 1 if function in ("open", "io.open", "gzip.open", "h5py.File") else 0
        modes = [k.value for k in node.keywords if k.arg == "mode"] + node.args[position:][:1]
        return not private and any(
            isinstance(m, ast.Constant) and isinstance(m.value, str) and set("wx+") & set(m.value)
            for m in modes
        )
    if last == "save_file":
        return not any(ast.unparse(a).startswith("private") for a in node.args)
    return False


def test_files_are_written_through_the_helper_alone() -> None:
    wrong = [
        where for where, call in calls(*PACKAGES)
        if where.partition(":")[0] not in OWN_WRITERS and opens_for_writing(call)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("open(path, 'w')", True), ("open(path, mode='xb')", True), ("path.open('wb')", True),
        ("path.open('r+b')", True), ("open(path)", False), ("path.open('rb')", False),
        ("path.open('a', encoding='utf-8')", False), ("path.write_text('x')", True),
        ("path.write_bytes(b'')", True), ("write_text(path, 'x')", False),
        ("private.write_text('x')", False), ("private.open('wb')", False),
        ("h5py.File(path, 'w')", True), ("h5py.File(private, 'w')", False),
        ("h5py.File(path, 'r')", False), ("save_file(state, path)", True),
        ("save_file(state, private / 'a')", False), ("os.open(path, os.O_RDONLY)", False),
        ("os.open(path, os.O_WRONLY | os.O_CREAT)", True),
    ],
)
def test_a_file_written_in_another_way_is_found(text: str, wrong: bool) -> None:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert opens_for_writing(call) is wrong


def test_nothing_executes_code_from_a_data_file() -> None:
    forbidden = {
        "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load",
        "yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load",
    }
    wrong = []
    for where, call in calls(*PACKAGES):
        function, text = ast.unparse(call.func), ast.unparse(call)
        unsafe = function == "torch.load" and "weights_only=True" not in text
        if function in forbidden or unsafe or "allow_pickle=True" in text:
            wrong.append(where.partition(":")[0])
    assert wrong == ["harness/base/compiled.py"]  # no data: code, from a folder of the user's own


REID = re.compile(
    r"(?<![a-z])(?:mAP(?!\()|(?i:prompts?|stage_?[12]|identit(?:y|ies)|cameras?|gallery))(?![a-z])"
)
"""Words of the method, also inside names; `map(` is Python's."""


def test_harness_uses_no_word_of_the_method() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for path in files("harness/**/*.*")
        if path.suffix in (".py", ".md")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if REID.search(line)
    ]
    assert not wrong


@pytest.mark.parametrize("line", [
    'metric: str = "validation.mAP"', "run.prompts_file", "Stage1 is", "of stage_2", "a Camera",
    "identities", "FIRST_CAMERA", "the gallery", "prompt",
])
def test_a_word_of_the_method_is_found_in_names_and_texts(line: str) -> None:
    assert REID.search(line)
    assert not REID.search("map(str, keys) as a map; the stage, identical, promptly, LEAST_OF_MAP")
