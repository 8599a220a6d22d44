"""The SLURM of the tests, brought up for a measurement and taken down after it."""

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def own_slurm(**size: int) -> Iterator[Any]:
    """A running `cluster.Cluster` of tests/slurm, also found by SLURM's commands.

    size: what its method `up` takes. Raises RuntimeError where it cannot be started.
    """
    kit = _kit()
    if reason := kit.missing():
        raise RuntimeError(f"no SLURM can be started: {reason}")
    cluster = kit.Cluster(Path(tempfile.mkdtemp(prefix="slurm-")))
    guard = cluster.guard()
    outside = os.environ.get("SLURM_CONF")
    try:
        cluster.up(**size)
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    finally:
        if outside is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = outside
        cluster.down()
        guard.stdin.close()
        guard.wait()


def _kit() -> Any:
    """Import cluster.py, a script in no package."""
    file = Path(__file__).parents[1] / "slurm" / "cluster.py"
    spec = importlib.util.spec_from_file_location("slurm_kit", file)
    assert spec is not None
    assert spec.loader is not None
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    return kit
