"""Every dataset that can be named: how it is read, and what is known of it."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.paths import expanded
from svll.base.records import Dataset
from svll.data.readers import (
    csv_list as image_list,
)
from svll.data.readers import (
    dukemtmc,
    market1501,
    msmt17,
    occluded_duke,
    vehicleid,
    veri776,
)
from svll.data.readers.common import Benchmark

Load = Callable[..., Dataset]

_TABLE: dict[str, tuple[Load, Benchmark | None]] = {
    "market1501": (market1501.load, market1501.BENCHMARK),
    "msmt17": (msmt17.load, msmt17.BENCHMARK),
    "dukemtmc": (dukemtmc.load, dukemtmc.BENCHMARK),
    "occluded_duke": (occluded_duke.load, occluded_duke.BENCHMARK),
    "veri776": (veri776.load, veri776.BENCHMARK),
    **{
        known.name: (partial(vehicleid.load, size=size), known)
        for size, known in vehicleid.BENCHMARKS.items()
    },
    "vehicleid": (vehicleid.load, vehicleid.BENCHMARKS[vehicleid.SIZES[0]]),
    "folder": (market1501.load_folder, market1501.OWN),
    "list": (image_list.load, None),
}


def names() -> tuple[str, ...]:
    """Return the names that `load_benchmark` takes."""
    return tuple(_TABLE)


def load_benchmark(name: str, root: str | Path, **options: Any) -> Dataset:
    """Read a dataset by name from its folder, or a `list` from its CSV file.

    options: arguments of the dataset's reader. Raises UserError for an unknown name, with the
    nearest ones, and as the reader does.
    """
    load, _ = _entry(name)
    return load(expanded(str(root)), **options)


def describe(name: str) -> Benchmark | None:
    """Return what is known of a dataset: its usual folders, published numbers; None for `list`."""
    return _entry(name)[1]


def _entry(name: str) -> tuple[Load, Benchmark | None]:
    if name in _TABLE:
        return _TABLE[name]
    near = difflib.get_close_matches(name.lower(), names(), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"no dataset {name!r}; {hint}There are: {', '.join(names())}")
