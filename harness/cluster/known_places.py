"""All places where jobs run."""

import shutil

from harness.base.errors import UserError
from harness.cluster.local.place import ThisMachine
from harness.cluster.place import Place
from harness.cluster.records import Cluster
from harness.cluster.slurm.place import Slurm

Places = dict[str, Place]


def all_places(*, max_age_s: float = 0.0, patient: bool = False) -> Places:
    """Return every place by its name in records. max_age_s: maximum age of a scheduler's answer.
    patient: wait for a scheduler that does not answer, instead of raising UserError."""
    return {"slurm": Slurm(max_age_s=max_age_s, patient=patient), "local": ThisMachine()}


def default_place() -> Cluster:
    """Return SLURM where it is installed, else this machine."""
    return "slurm" if shutil.which("sbatch") else "local"


def place_named(name: str, places: Places | None = None) -> Place:
    """Return a place by its name. Raises UserError for an unknown one."""
    known = places or all_places()
    if name not in known:
        raise UserError(f"no place {name!r} to run jobs; there are {', '.join(known)}")
    return known[name]
