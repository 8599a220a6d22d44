"""All targets, by name."""

from tests.fuzz import configuration, feature_files, run_files
from tests.fuzz.trying import Target

MODULES = (configuration, feature_files, run_files)
TARGETS: dict[str, Target] = {target.name: target for module in MODULES
                              for target in module.TARGETS}
