"""Words of other projects' command lines, answered with ours."""

import re
from collections.abc import Collection, Iterator, Sequence

from harness.base.errors import UserError
from harness.config.yaml_files import parse

FILE = "--recipe FILE, which takes files of CLIP-ReID, TransReID, fast-reid and torchreid too"
RESUME = "the same command again, which resumes from the last checkpoint"
EVALUATE = "python launch/evaluate.py --weights FILE --recipe NAME"
SWEEP = "python launch/slurm.py --sweep-name NAME --recipe RECIPE KEY=A,B"
OPTIONS = {
    "--config-file": FILE, "--config_file": FILE, "--config": FILE, "--config-name": FILE,
    "--config-path": FILE, "--cfg": FILE,
    "--resume": RESUME, "--load-weights": EVALUATE,
    "--eval-only": EVALUATE, "--eval_only": EVALUATE, "--evaluate": EVALUATE, "--test": EVALUATE,
    "--num-gpus": "torchrun --nproc-per-node N launch/train.py ...",
    "--gpu-devices": "CUDA_VISIBLE_DEVICES=0,1 before the command",
    "--root": "data.root=DIR", "-s": "data.name=NAME", "--sources": "data.train=[NAME, NAME]",
    "-t": "data.test=[NAME]", "--targets": "data.test=[NAME]", "--save-dir": "run.runs=FOLDER",
    "--opts": "KEY=VALUE with our keys (svll/recipes/MIGRATING.md)",
    "-m": SWEEP, "--multirun": SWEEP,
}
"""Options of CLIP-ReID, fast-reid, torchreid and Hydra, with what to use."""
KEY = re.compile(r"[A-Za-z]\w*(\.\w+)+|OUTPUT_DIR")


def refuse_words_of_others(words: Sequence[str], known: Collection[str]) -> None:
    """Raise UserError for words KEY VALUE, and for KEY=VALUE with a key of theirs, with what to
    type. known: our keys."""
    faults = list(_faults(words, known))
    if faults:
        raise UserError("\n".join(faults))


def _faults(words: Sequence[str], known: Collection[str]) -> Iterator[str]:
    place = 0
    while place < len(words):
        key, equals, text = words[place].partition("=")
        where = f"command line, override {place + 1}"
        if not equals and KEY.fullmatch(key) and place + 1 < len(words):
            text = words[place + 1]
            if "=" not in text.partition("[")[0]:
                place += 1
                yield f"{where}: {key} {text}: {_meant(key, text) or f'write {key}={text}'}"
        elif equals and key not in known and (meant := _meant(key, text)):
            yield f"{where}: {key}: {meant}"
        place += 1


def _meant(key: str, text: str) -> str:
    """Return what to type for a key of theirs; "" if no project has it."""
    from svll.migration.convert import PROJECTS, shown  # tables of 0.1 s, not for --help
    from svll.migration.rows import literal

    for project in PROJECTS:
        row = project.row(key)
        if row is None:
            continue
        try:
            value = literal(parse(text)[0])
            made = row.make(value, {**project.defaults, key: value})
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError):
            return f"a key of {project.name}; ours: {row.ours}" if row.ours else row.remark
        if made.settings:
            typed = " ".join(f"{ours}={shown(one)}" for ours, one in made.settings.items())
            return f"a key of {project.name}; write {typed.replace(', ', ',')}"
        return f"a key of {project.name} without counterpart: {made.note or row.remark}"
    return ""
