"""All targets, by name."""

from tests.fuzz import configuration
from tests.fuzz.trying import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (configuration,) for target in module.TARGETS
}
