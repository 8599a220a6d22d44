"""The table of datasets: name, reader, and published facts."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.paths import expanded
from svll.base.records import Dataset
from svll.data.readers import csv_list, dukemtmc, market1501, msmt17, vehicleid, veri776
from svll.data.readers.common import Benchmark

Load = Callable[..., Dataset]


def _in_layout(benchmark: Benchmark) -> tuple[Load, Benchmark]:
    return partial(market1501.load, benchmark=benchmark), benchmark


_TABLE: dict[str, tuple[Load, Benchmark | None]] = {
    "market1501": _in_layout(market1501.BENCHMARK),
    "msmt17": (msmt17.load, msmt17.BENCHMARK),
    "dukemtmc": _in_layout(dukemtmc.BENCHMARK),
    "occluded_duke": _in_layout(dukemtmc.OCCLUDED),
    "veri776": (veri776.load, veri776.BENCHMARK),
    **{
        known.name: (partial(vehicleid.load, size=size), known)
        for size, known in vehicleid.BENCHMARKS.items()
    },
    "vehicleid": (vehicleid.load, vehicleid.BENCHMARKS[800]),
    "folder": _in_layout(market1501.OWN),
    "list": (csv_list.load, None),
}


def names() -> tuple[str, ...]:
    """Return the names that `load_benchmark` takes."""
    return tuple(_TABLE)


def load_benchmark(name: str, root: str | Path, **options: Any) -> Dataset:
    """Read a dataset by name from its folder, or a `list` from its CSV file.

    options: arguments of the dataset's reader. Raises UserError for an unknown name, with the
    nearest ones, and as the reader does.
    """
    return _entry(name)[0](expanded(str(root)), **options)


def describe(name: str) -> Benchmark | None:
    """Return a dataset's usual folders and published numbers; None for `list`."""
    return _entry(name)[1]


def _entry(name: str) -> tuple[Load, Benchmark | None]:
    if name in _TABLE:
        return _TABLE[name]
    near = difflib.get_close_matches(name.lower(), names(), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"no dataset {name!r}; {hint}There are: {', '.join(names())}")
