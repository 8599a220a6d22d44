"""The page svll/recipes/MIGRATING.md, made from the tables by which files are converted.

    python -m svll.migration.page
"""

from collections.abc import Iterable
from pathlib import Path

from harness.base.files import write_text
from svll.migration.convert import PROJECTS
from svll.migration.rows import UNSET, Project, Row
from svll.migration.typed_words import OPTIONS

PAGE = Path(__file__).parents[1] / "recipes" / "MIGRATING.md"
TITLES = {"CLIP-ReID": "CLIP-ReID, SVLL-ReID"}
BEGINNING = """\
# Coming from CLIP-ReID, SVLL-ReID, TransReID, fast-reid or torchreid

<!-- written by python -m svll.migration.page -->

    python launch/train.py --recipe vit_clipreid.yml data.root=DIR --dry-run  # each key with ours
    python launch/train.py --recipe vit_clipreid.yml data.root=DIR            # trains

A recipe may be a YAML file of one of these projects (also `recipe:` and `extends:` in files of
ours). It is recognised by its keys and converted each time; keys that the file leaves out have the
project's defaults, not ours. `--dry-run` prints each key with ours and its line. Keys that have no
counterpart and change the result are also printed as warnings by every command. Settings after the
file are ours: `stage2.lr=1e-5`, not `SOLVER.STAGE2.BASE_LR 1e-5`. `_BASE_` of fast-reid is read.

The encoder is always one of CLIP's. So only CLIP-ReID, its baseline and SVLL-ReID give the same
training; files of the other projects give a start.

Weights of CLIP-ReID, SVLL-ReID and TransReID are read by `svll.load` and
`python launch/evaluate.py --weights FILE --recipe market1501 data.root=DIR`, features of other
toolboxes by `python launch/features.py --help`. Their YAML files combine with recipes of ours and
those in `parts/`: `--recipe vit_clipreid.yml+mine.yaml`.
"""


def page() -> str:
    """Return the page."""
    options = [f"| `{option}` | {_code(use)} |" for option, use in OPTIONS.items()]
    parts = [BEGINNING, "\n## Options\n", "| theirs | ours |", "|---|---|", *options]
    for project in PROJECTS:
        parts += [f"\n## {TITLES.get(project.name, project.name)}\n", *_differences(project),
                  "| their key | default | ours | remarks |", "|---|---|---|---|",
                  *map(_row, project.rows)]
    return "\n".join(parts) + "\n"


def _differences(project: Project) -> Iterable[str]:
    if project.differs:
        yield "Whatever the keys say: " + "; ".join(project.differs) + ".\n"
    if project.base:
        base = ", ".join(f"`{key}={value}`" for key, value in project.base.items())
        yield f"Always set: {base}.\n"


def _row(row: Row) -> str:
    ours = ", ".join(f"`{key.strip()}`" for key in row.ours.split(",")) if row.ours else "none"
    default = "" if row.default is UNSET else f"`{row.default}`"
    return f"| `{row.key}` | {default} | {ours} | {row.remark} |".replace("`|`", "`/`")


def _code(use: str) -> str:
    """Return what to use; a setting as code."""
    return f"`{use}`" if "=" in use and " " not in use else use


if __name__ == "__main__":
    write_text(PAGE, page())
