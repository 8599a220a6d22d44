"""The commands that documents show, and a folder in which all of them can be carried out."""

import ast
import contextlib
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml
from scipy.io import savemat

from harness.base.files import write_json
from svll.base.feature_file import read_features, write_features
from tests.commands import ROOT, called
from tests.svll.data import trees

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""Installed commands, by name: module:function."""
COMMAND = re.compile(rf"(python|torchrun|pip|source|{'|'.join(SCRIPTS)}) \S.*|make( .*)?")
"""What is a command, not just a word in code's letters."""


# --- reading ---


PAGES = sorted(path for pattern in ("*.md", "*/README.md", "svll/recipes/*.md")
               for path in ROOT.glob(pattern))
TEXTS = [*PAGES, *sorted(
    path for pattern in ("launch/*.py", "sweeps/*.yaml", "svll/recipes/**/*.yaml")
    for path in ROOT.glob(pattern)
)]
"""All that may show commands."""


def commands(text: str, suffix: str) -> Iterator[str]:
    """Yield the commands of one document, without what a shell would take for a comment."""
    for line in {".md": _markdown, ".py": _docstrings, ".yaml": _header}[suffix](text):
        line = re.sub(r"\s+#\s.*", "", line).strip()
        if COMMAND.fullmatch(line):
            yield line


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a Markdown text that are in some language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _markdown(text: str) -> Iterator[str]:
    """Yield lines of code blocks, and what stands in the text as code."""
    fenced = r"^```.*?^```$"
    for block in re.findall(fenced, text, re.MULTILINE | re.DOTALL):
        yield from _joined(block)
    rest = re.sub(fenced, "", text, flags=re.MULTILINE | re.DOTALL)
    yield from _joined("\n".join(re.findall(r"^    .*", rest, re.MULTILINE)))
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^    .*", "", rest, flags=re.MULTILINE))


def _docstrings(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef):
            yield from _joined(ast.get_docstring(node) or "")


def _header(text: str) -> Iterator[str]:
    """Yield the comment lines that a YAML file begins with, and what follows a colon in them."""
    header = re.match(r"(#.*\n)*", text)
    assert header is not None
    for line in _joined(re.sub(r"^# *", "", header[0], flags=re.MULTILINE)):
        yield line
        yield line.partition(": ")[2]


def _joined(text: str) -> list[str]:
    """Return lines, of which those that end with a backslash go on in the next."""
    return re.sub(r"\\\n\s*", "", text).splitlines()


# --- a folder where they can be carried out ---


def furnish(folder: Path) -> None:
    """Make all that documents speak of, under the names that they use.

    It holds one real run of the smallest recipe; what else is a run is a copy of it.
    """
    (folder / "sweeps").symlink_to(ROOT / "sweeps")
    with contextlib.chdir(folder):
        done = called(
            "train", "--recipe", "synthetic_tiny", "stage1.epochs=1", "stage2.epochs=1",
            "engine.precision=fp32", "run.tensorboard=false",
        )
    assert done.status == 0, done.err
    [run] = (folder / "runs" / "synthetic_tiny").iterdir()
    for name in ("synthetic/<signature>", "synthetic/0a1b2c3d4e5f", "synthetic/5f4e3d2c1b0a",
                 "market1501/0a1b2c3d4e5f", "demo/0a1b2c3d"):
        _link(run, folder / "runs" / name)
    for name in ("RUN_OR_FILE", "RUN"):
        _link(run, folder / name)
    [world] = (folder / "runs" / "cache" / "data").iterdir()
    (folder / "world").symlink_to(world)
    for name in ("loss_weights", "occluded"):
        _sweep(run, folder / "runs" / name)
    (folder / "vit_clipreid.yml").write_text("MODEL: {NAME: ViT-B-16}\nSOLVER: {STAGE2: {}}\n")
    _features(run / "features.h5", folder)
    _images(folder)


def _link(source: Path, target: Path) -> None:
    """Copy a folder without copying bytes: files are replaced, never written into."""
    shutil.copytree(source, target, copy_function=os.link)


def copied(folder: Path, to: Path) -> Path:
    """Return a copy of the furnished folder in which a command may do what it likes."""
    shutil.copytree(folder, to, copy_function=os.link, symlinks=True)
    return to


def _sweep(run: Path, folder: Path) -> None:
    """A finished sweep of four trials."""
    trials = []
    for number, (lss, vss) in enumerate([(0.0, 0.0), (0.8, 0.0), (0.0, 0.8), (0.8, 0.8)]):
        _link(run, folder / f"trial{number}")
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["stage1"]["lss_weight"], config["stage2"]["vss_weight"] = lss, vss
        (folder / f"trial{number}" / "config.yaml").unlink()
        (folder / f"trial{number}" / "config.yaml").write_text(yaml.safe_dump(config))
        write_json(folder / f"trial{number}" / "result.json", {
            "mAP": 0.5, "cmc": {"1": 0.6}, "validation": {"mAP": 0.5 + 0.1 * number},
        })
        point = {"stage1.lss_weight": lss, "stage2.vss_weight": vss}
        trials.append({"point": point, "seed": 1, "signature": f"trial{number}"})
    write_json(folder / "sweep.json", {
        "name": "loss_weights", "metric": "validation.mAP", "mode": "max", "trials": trials,
    })


def _features(file: Path, folder: Path) -> None:
    """Feature files under all names, whole, as shards, and as another toolbox writes them."""
    for name in ("features.h5", "f.h5", "validation.h5", "query.h5"):
        os.link(file, folder / name)
    groups = read_features(file).groups
    write_features(
        folder / "shards" / "0.h5", {"gallery": groups["gallery"]}, dataset="d", model="m"
    )
    names = {"f": "features", "label": "identities", "cam": "cameras"}
    savemat(folder / "pytorch_result.mat", {
        f"{side}_{short}": getattr(groups[side], name)
        for side in ("query", "gallery") for short, name in names.items()
    })


def _images(folder: Path) -> None:
    """The benchmarks in miniature (`DIR`), a user's own images (`own`), and some without labels."""
    for name in trees.NAMES:
        trees.build(name, folder / "DIR")
    lines = ["path,identity,camera,split"]
    for identity in range(40):
        for camera in (1, 2):
            name = f"{identity:04}_c{camera}s1_000451_00.jpg"
            trees.picture(folder / "own" / name)
            part = "train" if identity < 20 else "query" if camera == 1 else "gallery"
            lines.append(f"own/{name},{identity},{camera},{part}")
    (folder / "FILE.csv").write_text("\n".join(lines) + "\n")
    for name in ("photos", "PHOTOS", "queries", "QUERIES"):
        trees.picture(folder / name / "1.jpg")
    for name in ("a.jpg", "b.jpg"):
        trees.picture(folder / name)
