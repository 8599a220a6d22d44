"""What TensorBoard and W&B show of a run in addition to its log: a readable name, tags, settings,
the final scores, and ranked images of a few queries."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.mappings import leaves, numeric_leaves, short_names
from harness.config.build import build
from harness.config.recipes import named_recipe
from harness.config.sources import Setting
from harness.config.values import to_mapping
from harness.images.pixels import small_copy
from harness.listing.notes import read_notes
from harness.reporting.ranking_table import setting
from harness.runs.run import Run
from harness.sweeps.space import RECIPE
from harness.training.about import About
from svll.config import RECIPES, Config
from svll.data.datasets import tested_on, trained_on
from svll.evaluation.engine.feature_rows import JUNK
from svll.evaluation.feature_files.ranked_lists import TOP, RankedList, Wanted, ranked_lists
from svll.evaluation.feature_files.score_text import RANKS
from svll.evaluation.feature_files.scores import score
from svll.evaluation.feature_files.sources import Source, open_source
from svll.evaluation.protocols import draw_labels
from svll.evaluation.ranking import Options

QUERIES = 8
"""Queries in the picture of ranked images."""
HEIGHT, GAP, FRAME, HEAD = 112, 4, 3, 16  # of an image, between images, its frame, the legend
RIGHT, WRONG, ASKING, PAPER, GONE = "#1a9641", "#d7191c", "#222222", "#ffffff", "#cccccc"
LEGEND = (f"A query, then its {TOP} nearest gallery images. Green: the same identity. "
          "Red, crossed: another.")


def about(run: Run, config: Config) -> About:
    """Return the name and tags of a run: of its sweep, point and seed, or, outside a sweep, of its
    recipe and what differs from it."""
    group = run.folder.parent.name
    trial = _trial(run)
    changed, recipes = (_changes(group, config), [group]) if trial is None else trial
    recipe = changed.pop(RECIPE, None)
    names = short_names(changed)
    parts = [f"{names[key]}={_short(value)}" for key, value in changed.items()]
    label = " ".join([*([recipe] if recipe else []), *parts, f"seed={config.seed}"])
    datasets = {*trained_on(config.data), *tested_on(config.data)}
    tags = dict.fromkeys([group, *([recipe] if recipe else recipes), *sorted(datasets),
                          *_given_tags(run)])
    return About(to_mapping(config), label, tuple(tags))


def _short(value: Any) -> str:
    """Return a setting for a label, which may be the name of a folder."""
    text = setting(value) or "null"
    return text.removesuffix(".0") if isinstance(value, float) else text


def _given_tags(run: Run) -> Iterator[str]:
    """Yield the tags that the user gave to the sweep and to the run (`launch/runs.py tag`)."""
    for folder in (run.folder.parent, run.folder):
        with suppress(UserError):  # a damaged file, which is no reason not to train
            yield from read_notes(folder).tags


def _trial(run: Run) -> tuple[dict[str, Any], list[str]] | None:
    """Return a trial's point and its sweep's recipes; None for a run outside of a sweep."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        sweep = read_json(run.folder.parent / "sweep.json")
        for trial in sweep["trials"]:
            if trial["signature"] == run.signature:
                return dict(trial["point"]), list(sweep.get("recipes", ()))
    return None


def _changes(recipe: str, config: Config) -> dict[str, Any]:
    """Return the settings in which a run differs from a shipped recipe; none from an unknown one.
    """
    root = Setting("data.root", config.data.root, "the run")
    with suppress(UserError):
        usual = build(Config, [*named_recipe(recipe, Config, RECIPES, near=()), root])
        own, others = (leaves(to_mapping(one, with_runtime=False)) for one in (config, usual))
        return {key: value for key, value in own.items()
                if value != others.get(key) and key != "seed" and "fingerprint" not in key}
    return {}


def final_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a result by the names of their curves; of CMC the usual ranks."""
    numbers = numeric_leaves(result)
    ranks = {key: re.search(r"\bcmc\.(\d+)$", key) for key in numbers}
    return {f"result/{key.replace('.', '/')}": value for key, value in numbers.items()
            if (rank := ranks[key]) is None or int(rank[1]) in RANKS}


# --- ranked images ---


def ranked_images(
    file: Path, staged: Mapping[str, str], shape: float
) -> dict[str, NDArray[np.uint8]]:
    """Return a picture [h, w, 3] of a feature file's ranked lists, by its name: of some queries,
    the same for every run on the dataset, and their nearest gallery images.

    staged: where images are now, by their paths. shape: an image's width over its height. Images
    that cannot be read are grey. Ranks `QUERIES` queries only. Raises UserError where there is
    nothing to rank.
    """
    with open_source(file) as source:
        few = _few(source)
        [scored] = score(few, options=Options(top_k=TOP))
        lists = ranked_lists(few, scored.result, Wanted(QUERIES)).shown
        rows = [list(_row(few, one)) for one in sorted(lists, key=lambda one: one.row)]
    width = round(HEIGHT * min(max(shape, 0.5), 1.5))
    step = width + 2 * FRAME + GAP, HEIGHT + 2 * FRAME + GAP
    picture = Image.new("RGB", ((TOP + 1) * step[0], HEAD + len(rows) * step[1]), PAPER)
    drawing = ImageDraw.Draw(picture)
    drawing.text((GAP, 2), LEGEND, fill=ASKING)
    for y, row in enumerate(rows):
        for x, (path, colour) in enumerate(row):
            image = small_copy(Path(staged.get(path, path)), (width, HEIGHT))
            image = image or Image.new("RGB", (width, HEIGHT), GONE)
            left, top = x * step[0], HEAD + y * step[1]
            right, bottom = left + image.width + 2 * FRAME - 1, top + image.height + 2 * FRAME - 1
            drawing.rectangle((left, top, right, bottom), fill=colour)
            picture.paste(image, (left + FRAME, top + FRAME))
            if colour == WRONG:  # not by its colour alone
                drawing.line((right - 14, top, right, top + 14), fill=colour, width=3)
                drawing.line((right - 14, top + 14, right, top), fill=colour, width=3)
    return {f"result/ranked images of {source.dataset}": np.asarray(picture)}


def _few(source: Source) -> Source:
    """Return a source in which all but some queries with a possible match are junk."""
    query, gallery = source.query, source.gallery
    if source.protocol == "random_gallery":  # the first draw
        asking, known = draw_labels(gallery.identities)
        query = replace(gallery, identities=asking, cameras=np.zeros_like(asking))
        gallery = replace(gallery, identities=known, cameras=np.ones_like(known))
        source = replace(source, protocol="cross_camera", gallery=gallery)
    if query.paths is None or gallery.paths is None:
        raise UserError(f"{source.where}: has no paths of images")
    known = np.isin(query.identities, gallery.identities) & (query.identities != JUNK)
    rows = np.flatnonzero(known)
    chosen = rows[np.linspace(0, len(rows) - 1, min(QUERIES, len(rows))).round().astype(int)]
    identities = np.full_like(query.identities, JUNK)
    identities[chosen] = query.identities[chosen]
    return replace(source, query=replace(query, identities=identities))


def _row(source: Source, one: RankedList) -> Iterator[tuple[str, str]]:
    """Yield path and colour of a query and of its nearest images."""
    assert source.query.paths is not None
    assert source.gallery.paths is not None
    yield source.query.paths[one.row], ASKING
    for hit in one.hits:
        yield source.gallery.paths[hit.row], RIGHT if hit.is_match else WRONG
