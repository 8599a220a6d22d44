"""A search on an external Ray, which is checked before anything starts and left unchanged."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from harness.base.errors import UserError
from harness.cluster.ray.nodes import Rendezvous
from harness.cluster.snapshots import SAFE_PATH
from harness.sweeps.keys import Allocation, Resources

ANSWER_LIMIT_S = 30.0
PRINT_NODES = """
import json, logging, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


@contextmanager
def use(rendezvous: Rendezvous, address: str) -> Iterator[None]:
    """Write the Ray's address to the rendezvous file while the body runs."""
    storage = rendezvous.folder / f"tune-{rendezvous.attempt}"
    variables = {name: os.environ[name] for name in ("PYTHONPATH", SAFE_PATH) if name in os.environ}
    try:
        rendezvous.write(state="up", address=address, storage=str(storage),
                         init={"runtime_env": {"env_vars": variables}})
        yield
    finally:
        rendezvous.write(state="over")
        shutil.rmtree(storage, ignore_errors=True)


def environment() -> dict[str, str]:
    """Return the environment of the driver, with the user's token for that Ray."""
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


def room(address: str, asked: Resources, many: Allocation) -> tuple[int, Resources]:
    """Return how many trials a Ray has room for at the same time, and the resources of each.

    Where the sweep leaves the GPUs open: one per rank, or none if that Ray has fewer. Raises
    UserError when it does not answer, has another version, or has no room for a trial.
    """
    nodes = nodes_of(address)
    choices = [asked.ranks_per_node, 0] if asked.gpus is None else [asked.gpus]
    for gpus in choices:
        one = dataclasses.replace(asked, gpus=gpus)
        wanted = {"CPU": float(one.cpus * one.ranks_per_node), "GPU": gpus / many.trials_per_gpu}
        fits = [_times(node, wanted) for node in nodes]
        count = sum(fits) if one.nodes == 1 else sum(fit > 0 for fit in fits) // one.nodes
        if count:
            break
    else:
        there = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
        raise UserError(f"resources: a trial wants {one.nodes} node(s) with {wanted['CPU']:g} CPU "
                        f"and {wanted['GPU']:g} GPU each; the Ray at {address} has {there}")
    return count, one


def _times(node: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    # rounded, because 1 // 0.1 is 9
    return min(int(round(node.get(name, 0) / amount, 6)) for name, amount in wanted.items()
               if amount)


def nodes_of(address: str) -> list[dict[str, float]]:
    """Return the resources of each node of a Ray. Raises UserError with Ray's message."""
    try:
        done = subprocess.run([sys.executable, "-c", PRINT_NODES, address], capture_output=True,
                              text=True, timeout=ANSWER_LIMIT_S, env=environment(),
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise UserError(f"ray.address: {address} does not answer within {ANSWER_LIMIT_S:.0f} s; is "
                        "that Ray running, and can this machine reach it?") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first = next((n for n, line in enumerate(lines) if "Error: " in line), len(lines) - 1)
        raise UserError(f"ray.address: {address}: {' '.join(lines[first:])[:600]}")
    return list(json.loads(done.stdout.splitlines()[-1]))
