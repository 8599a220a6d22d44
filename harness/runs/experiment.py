"""Facts about an experiment that the harness needs besides its configuration. The class of its
configuration has them as the class variable `experiment`; all are optional."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Experiment:
    """The experiment's names of metrics and files, and its advice on failures."""

    metric: str = ""
    """Ranks the trials of a sweep that names no metric."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Further numbers of a result in tables of trials: title to dotted key."""
    carried_files: tuple[str, ...] = ()
    """Files in a run's folder that another run needs with its checkpoint."""
    stages: Mapping[str, str] = field(default_factory=dict)
    """Stages of training in order: name in the metric log to dotted key of its number of epochs."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """What to do about a failure, by a regular expression that finds it in an error or a log."""


def experiment_of(schema: type) -> Experiment:
    """Return the class variable `experiment` of a configuration, or an empty one."""
    found: Experiment = getattr(schema, "experiment", Experiment())
    return found
