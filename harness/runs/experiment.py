"""What an experiment tells the harness about itself, besides the keys of its configuration.

The class of its configuration has it as the class variable `experiment`. What is left out there is
empty, and the harness does without.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Experiment:
    """Names of the experiment's own that the harness shows, copies and compares by."""

    metric: str = ""
    """What ranks the trials of a sweep that names no metric."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Further numbers of a result in tables of trials: title to dotted key."""
    carried_files: tuple[str, ...] = ()
    """Files in a run's folder without which its checkpoint is of no use to another run."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """What to do about a failure, by a regular expression that finds it in an error or a log."""


def experiment_of(schema: type) -> Experiment:
    """Return what the class of a configuration tells of its experiment."""
    found: Experiment = getattr(schema, "experiment", Experiment())
    return found
