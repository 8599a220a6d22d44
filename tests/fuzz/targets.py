"""All targets, by name."""

from tests.fuzz import checkpoints, configuration
from tests.fuzz.trying import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (checkpoints, configuration) for target in module.TARGETS
}
