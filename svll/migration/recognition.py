"""Recognises YAML files of other projects by their keys. The tables by which they are converted
are imported for such files alone."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.sources import Setting
from harness.config.yaml_files import read_yaml

if TYPE_CHECKING:  # the tables take 0.1 s, which --help should not
    from svll.migration.convert import Conversion

log = logging.getLogger(__name__)

UPPER = {"MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST", "_BASE_"}
"""Sections of CLIP-ReID, SVLL-ReID, TransReID and fast-reid."""
LOWER = {"train", "loss", "sampler", "test", "adam", "sgd", "use_gpu"}
"""Sections of torchreid that are none of ours."""


def is_foreign(value: Mapping[str, Any]) -> bool:
    data = value.get("data")
    sources = isinstance(data, Mapping) and bool({"sources", "targets"} & data.keys())
    return bool(UPPER & value.keys()) or len(LOWER & value.keys()) > 1 or sources


def foreign(path: Path, value: Mapping[str, Any], lines: Mapping[str, int]) -> list[Setting] | None:
    """Return the settings of a file of another project, None for a recipe of ours. Logs what the
    conversion cannot keep. Raises UserError for values that are not theirs either."""
    if not is_foreign(value):
        return None
    from svll.migration.convert import convert

    found = convert(path, value, lines)
    log.info("%s is a configuration of %s and was converted (launch/train.py --recipe %s --dry-run "
             "shows each key)", path, found.project.name, path)
    for line in found.loud:
        log.warning("the result will differ from %s: %s", found.project.name, line)
    return found.settings


def read_foreign(path: Path) -> "Conversion | None":
    """Return the conversion of a file, None for a recipe of ours."""
    value, lines = read_yaml(path)
    if not is_foreign(value):
        return None
    from svll.migration.convert import convert

    return convert(path, value, lines)
