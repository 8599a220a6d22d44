"""A layout's folder, its commands, and what they leave: each made once, when it is asked for."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from harness.runs.run import Run
from svll.world.world import named_world
from tests.commands import Command, Ended, called, started
from tests.end_to_end import layouts
from tests.end_to_end.layouts import WORLD, Layout
from tests.svll.data.trees import Tree

SMALL = shlex.split(
    "model.name=svll-tiny model.weights=shipped model.stride=8 model.head_hidden=32 "
    "model.head_out=16 data.height=64 data.width=32 stage1.epochs=1 stage1.batch=16 "
    "stage1.warmup_epochs=0 stage1.lr_min=3e-4 stage2.epochs=1 stage2.batch=8 stage2.instances=2 "
    "stage2.warmup_epochs=0 stage2.milestones=[] stage2.lr=3e-4 stage2.pad=4 "
    "engine.precision=fp32 run.tensorboard=false run.log_every=1"
)
"""The smallest model and few steps; all else is the recipe's."""
DRAWN = (
    f"data.world.train_identities={WORLD.train_identities} "
    f"data.world.test_identities={WORLD.test_identities} data.world.shots={WORLD.shots}"
)
VEHICLEID = {f"vehicleid_{size}": partial(layouts.vehicleid, size=size) for size in layouts.SIZES}
MSMT17 = {version: partial(layouts.msmt17, version=version) for version in ("V1", "V2")}

LAYOUTS = {layout.name: layout for layout in (
    Layout("market1501", "market1501", {"market1501": layouts.market1501}, other="dukemtmc"),
    Layout("msmt17_v1", "msmt17", {"msmt17": MSMT17["V1"]}),
    Layout("msmt17_v2", "msmt17", {"msmt17": MSMT17["V2"]}),
    Layout("dukemtmc", "dukemtmc", {"dukemtmc": layouts.dukemtmc}, other="msmt17_v2"),
    Layout("occluded_duke", "occluded_duke", {"occluded_duke": layouts.occluded_duke}),
    Layout("veri776", "veri776", {"veri776": layouts.veri776}, other="vehicleid_2400"),
    Layout("veri776_viewless", "veri776", {"veri776": partial(layouts.veri776, lists=False)},
           words="data.root={root} model.sie=camera", other="vehicleid_1600"),
    Layout("vehicleid_800", "vehicleid", VEHICLEID, protocol="random_gallery", other="veri776"),
    *(
        Layout(name, "vehicleid", {name: build}, protocol="random_gallery", other="veri776",
               words=f"data.root={{root}} data.name={name} data.test=[{name}]")
        for name, build in list(VEHICLEID.items())[1:]
    ),
    Layout("folder", "market1501", {"folder": layouts.folder},
           words="data.name=folder data.root={root}/mine"),
    Layout("list", "market1501", {"list": layouts.split_list},
           words="data.name=list data.root={root}/own.csv", file="own.csv", other="list_plain"),
    Layout("list_plain", "market1501", {"list": layouts.plain_list}, protocol="all_gallery",
           words="data.name=list data.root={root}/plain.csv model.sie=none", file="plain.csv"),
    Layout("synthetic", "synthetic_tiny", {"synthetic": layouts.synthetic}, words=DRAWN),
    Layout("synthetic_given", "synthetic_tiny",
           {"synthetic": partial(layouts.synthetic, world=named_world(4))},
           words="data.roots={{synthetic: {root}/world}} data.validation=0"),
    Layout("joined", "market1501",
           {"dukemtmc": layouts.dukemtmc, "msmt17": lambda root: MSMT17["V1"](root / "far")},
           {"market1501": layouts.market1501, "msmt17": lambda root: MSMT17["V1"](root / "far")},
           words="data.train=[market1501,msmt17] data.test=[dukemtmc,msmt17] data.root={root} "
                 "data.roots={{msmt17: {root}/far}}", other="occluded_duke"),
)}  # fmt: skip


@dataclass
class Walk:
    """A layout on disk, and the way through it."""

    layout: Layout
    top: Path
    """Of this layout alone."""

    @property
    def root(self) -> Path:
        """The folder that the datasets are in."""
        return self.top / "data"

    @property
    def runs(self) -> Path:
        return self.top / "runs"

    @property
    def command(self) -> Command:
        """Most of one layout's commands are processes, as a user starts them."""
        return started if self.layout.name == "msmt17_v1" else called

    @cached_property
    def trees(self) -> dict[str, Tree]:
        """What is on disk, by dataset."""
        if self.layout.name == "list":
            layouts.own_images(self.root)
            made = self.command("data", "split", "--root", self.root / "own", "--out",
                                self.root / "own.csv")
            assert made.status == 0, made.err
        if self.layout.name == "synthetic_given":
            made = self.command("data", "synthetic", "--root", self.root / "world", "--size", 4)
            assert made.status == 0, made.err
        built = {**self.layout.training, **self.layout.datasets}
        return {name: build(self.root) for name, build in built.items()}

    @property
    def data_words(self) -> list[str]:
        """key=value that say which datasets, and where; they are there then."""
        assert self.trees
        return [word.format(root=self.root) for word in _split(self.layout.words)]

    def words(self, *more: str, runs: Path | None = None) -> list[str]:
        """Options and key=value of train.py."""
        return ["--recipe", self.layout.recipe, *SMALL, *self.data_words, *more,
                f"run.runs={runs or self.runs}"]  # fmt: skip

    @cached_property
    def training(self) -> Ended:
        """train.py, once."""
        return self.command("train", *self.words())

    @property
    def trained(self) -> Run:
        """The complete run; whatever needs one fails where training failed."""
        assert self.training.status == 0, self.training.err[-2000:]
        return run_in(self.runs)

    def features(self, run: Run | None = None) -> dict[str, Path]:
        """Feature files by test set."""
        run = run or self.trained
        first, *others = self.layout.datasets
        return {first: run.features_file} | {
            name: run.folder / f"features.{name}.h5" for name in others
        }


def _split(text: str) -> list[str]:
    """Split at spaces that are not within braces."""
    return re.findall(r"(?:\{[^}]*\}|[^\s{])+", text)


def run_in(runs: Path) -> Run:
    """Return the one run below a folder of runs."""
    [folder] = [path.parent for path in runs.glob("*/*/config.yaml")]
    return Run(folder)


def numbers(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a run's metric log and result, without what the clock says."""
    from harness.training.loop import MEASURED

    lines = [{k: v for k, v in line.items() if k not in MEASURED} for line in run.metrics()]
    result = dict(run.result() or {})
    del result["seconds"]
    return lines, result
