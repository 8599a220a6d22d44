"""All places that there are."""

from harness.base.errors import UserError
from harness.cluster.local.place import ThisMachine
from harness.cluster.place import Place
from harness.cluster.records import Cluster
from harness.cluster.slurm import commands
from harness.cluster.slurm.place import Slurm

Places = dict[str, Place]


def all_places(*, max_age_s: float = 0.0, patient: bool = False) -> Places:
    """Return every place by its name in records.

    max_age_s: how old a scheduler's answer may be. patient: wait for a scheduler that does not
    answer, instead of raising UserError.
    """
    return {"slurm": Slurm(max_age_s=max_age_s, patient=patient), "local": ThisMachine()}


def default_place() -> Cluster:
    """Return where trials run unless the user says so: SLURM where it is, else here."""
    return "slurm" if commands.is_here() else "local"


def place_named(name: str, places: Places | None = None) -> Place:
    """Return a place by the name that a record or a user gives it."""
    known = places or all_places()
    if name not in known:
        raise UserError(f"no place {name!r} to run jobs; there are {', '.join(known)}")
    return known[name]
