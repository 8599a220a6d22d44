"""The house has floors: every import goes down, inside of functions too, and none in a circle."""

import ast
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.test_house_rules import PACKAGES, ROOT, everything, files, parsed

FLOORS = {
    "harness": (
        "base", "config", "features", "images", "runs", "training", "sweeps", "cluster",
        "reporting", "listing",
    ),
    "svll": (
        "base", "migration", "config", "losses", "prompt_augmentation", "prompt_quality",
        "evaluation.engine", "evaluation", "data.readers", "world", "data", "models.files",
        "models", "models.weights", "features", "reuse", "evaluation.feature_files", "inputs",
        "scoring", "curves",
        "stage1", "stage2", "experiment", "runs", "reports.figures", "reports", "search",
    ),
}
"""Packages from the ground up, and the files at svll's root: each imports only those before it."""


@cache
def modules() -> dict[str, set[str]]:
    """Return all modules, each with those that it imports, inside of functions too."""
    of = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files(*everything(*PACKAGES))
    }
    found: dict[str, set[str]] = {name: set() for name in of}
    for name, path in of.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                said = node.module or ""
                named = {f"{said}.{alias.name}" for alias in node.names}
                found[name] |= {module if module in of else said for module in named}
    return {name: (others & of.keys()) - {name} for name, others in found.items()}


def floor(module: str) -> str:
    """Return the name in FLOORS that a module belongs to: the longest; "" for a front door."""
    top, _, rest = module.partition(".")
    return max((n for n in FLOORS[top] if f"{rest}.".startswith(f"{n}.")), key=len, default="")


@pytest.mark.parametrize("top", FLOORS)
def test_packages_import_only_those_below_them(top: str) -> None:
    order = ("", *FLOORS[top])
    inside = {m: {o for o in others if o.startswith(top)} for m, others in modules().items()
              if m.startswith(f"{top}.")}
    assert {floor(module) for module in inside} == set(FLOORS[top])
    upward = [
        f"{module} imports {other}" for module, others in inside.items() for other in others
        # a front door (__init__.py) hands on names of its own package and of those above it
        if not (ROOT / module.replace(".", "/")).is_dir()
        and not 0 < order.index(floor(other)) <= order.index(floor(module))
    ]
    assert not upward, f"{upward}; from the ground up: {', '.join(FLOORS[top])}"


def test_no_modules_import_one_another_in_a_circle() -> None:
    TopologicalSorter(modules()).prepare()  # CycleError names the circle
