"""All targets, by name."""

from tests.fuzz import configuration, datasets
from tests.fuzz.trying import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (configuration, datasets)
    for target in module.TARGETS
}
