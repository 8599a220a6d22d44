"""A sweep as JSON, for a process on another machine that must make further trials of it.

It gets what the launcher had found without fault, not the sweep file, which may be edited
meanwhile.
"""

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any

from harness.config.build import Base
from harness.config.sources import Setting
from harness.sweeps.conditions import Condition
from harness.sweeps.dimensions import Dimension
from harness.sweeps.keys import ALGORITHMS, SCHEDULERS, Allocation, Resources
from harness.sweeps.reading import Sweep, with_proposed
from harness.sweeps.space import Space


def freeze(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep, without its trials, as values that JSON can hold."""
    plain = {
        key: getattr(sweep, key)
        for key in ("name", "file", "samples", "metric", "mode", "backend", "slurm")
    }
    plain["objectives"] = dict(sweep.objectives)
    return {
        **plain,
        "schema": _dotted(sweep.base.schema), "complete": _dotted(sweep.complete),
        "recipes": {
            name: [dataclasses.asdict(setting) for setting in base.settings]
            for name, base in sweep.bases.items()
        },
        "dimensions": [dataclasses.asdict(dimension) for dimension in sweep.space.dimensions],
        "constraints": [dataclasses.asdict(item) for item in sweep.space.constraints],
        "seeds": [dataclasses.asdict(seed) for seed in sweep.seeds],
        "scheduler": _chosen(sweep.scheduler), "algorithm": _chosen(sweep.algorithm),
        "resources": dataclasses.asdict(sweep.resources), "ray": dataclasses.asdict(sweep.ray),
        "folder": str(sweep.folder.resolve()), "code": str(sweep.code or ""),
    }


def thaw(frozen: dict[str, Any]) -> Sweep:
    """Return the sweep with the trials of the points that were proposed so far.

    Other trials are not computed again: a search is handed their folders.
    """
    schema = _named(frozen["schema"])
    bases: dict[str, Base[Any]] = {
        name: Base(schema, [Setting(**item) for item in settings])
        for name, settings in frozen["recipes"].items()
    }
    space = Space(
        tuple(_dimension(item) for item in frozen["dimensions"]),
        tuple(_condition(item) for item in frozen["constraints"]),
        {name: base.build() for name, base in bases.items()},
    )
    sweep = Sweep(
        **{key: frozen[key] for key in
           ("name", "file", "samples", "metric", "mode", "backend", "slurm", "objectives")},
        bases=bases, space=space, seeds=tuple(Setting(**item) for item in frozen["seeds"]),
        scheduler=_of(SCHEDULERS, frozen["scheduler"]),
        algorithm=_of(ALGORITHMS, frozen["algorithm"]),
        resources=Resources(**frozen["resources"]), ray=Allocation(**frozen["ray"]),
        folder=Path(frozen["folder"]), complete=_named(frozen["complete"]),
        code=Path(frozen["code"]) if frozen["code"] else None,
    )
    return with_proposed(sweep) if sweep.algorithm is not None else sweep


def _dotted(value: Any) -> str:
    """Return the name by which a class or function is found again."""
    while isinstance(value, functools.partial):  # what one command remembers
        value = value.func
    return f"{value.__module__}.{value.__qualname__}"


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _chosen(value: Any) -> dict[str, Any] | None:
    return None if value is None else {value.kind: dataclasses.asdict(value)}


def _of(kinds: dict[str, type], frozen: dict[str, Any] | None) -> Any:
    return next((kinds[kind](**options) for kind, options in (frozen or {}).items()), None)


def _condition(item: dict[str, Any]) -> Condition:
    return Condition(**{**item, "names": tuple(item["names"])})


def _dimension(item: dict[str, Any]) -> Dimension:
    when = _condition(item["when"]) if item["when"] else None
    return Dimension(**{**item, "values": tuple(item["values"]), "when": when})
