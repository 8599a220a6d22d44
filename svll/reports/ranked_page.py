"""A page that shows what a model ranks rightly and what it does not: numbers, curves, and images.

It is one file, ranked.html, that needs nothing but itself; its curves are written beside it, too.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.reporting.drawing import as_svg, save
from harness.reporting.page import Html, element, figure, join, link, note, page, section, table
from svll.base.protocols import PROTOCOLS
from svll.evaluation.camera_pairs import CameraPair
from svll.evaluation.confusions import hardest_confusions
from svll.evaluation.engine.feature_rows import JUNK
from svll.evaluation.feature_files.ranked_lists import (
    TOP,
    Hit,
    Lists,
    RankedList,
    Wanted,
    check_wanted,
    ranked_lists,
)
from svll.evaluation.feature_files.score_text import RANKS, settings_text
from svll.evaluation.feature_files.scores import Score, score
from svll.evaluation.feature_files.sources import Source, open_source
from svll.evaluation.protocols import DRAWS
from svll.evaluation.ranking import Options
from svll.evaluation.verification import Verification
from svll.reports import thumbnails
from svll.reports.figures.verification_curves import draw_roc, draw_similarities, in_words
from svll.reports.thumbnails import Thumbnails

NAME = "ranked.html"
CONFUSIONS = 20
TITLES = {
    "curves": "Same identity or not",
    "confusions": "Identities taken for others",
    "cameras": "Mean average precision by camera pair",
    "lists": "Ranked lists",
}
"""Of the page's sections, by what links to them call them."""
WORST_PAIRS = 5
"""Camera pairs that are marked and listed."""
NAMED = 3
"""Missing images whose paths are told."""
STYLE = thumbnails.STYLE + """
.summary td:first-child { white-space: nowrap; } .summary td:last-child { overflow-wrap: anywhere; }
.pairs .thumbnail, .pairs .gone { height: 64px; max-width: 96px; }
.list { display: flex; gap: .4rem; padding: .3rem 0 .6rem; font-size: .75rem; line-height: 1.35; }
.list > div { flex: none; min-width: 4.6rem; max-width: 9.6rem; }
.list .asking { position: sticky; left: 0; background: var(--paper); padding-right: .3rem;
  border-right: 1px solid var(--line); min-width: 6.5rem; }
.list .thumbnail, .list .gone { border: 3px solid transparent; }
.list .match .thumbnail, .list .match .gone { border-color: var(--good); }
.list .mistake .thumbnail, .list .mistake .gone { border: 3px dashed var(--bad); }
"""


def ranked_page(
    file: Path, out: Path, wanted: Wanted | None = None, *, root: Path | None = None,
    figures: Path | None = None, kind: str | None = None,
) -> Path:
    """Write the page of a feature file, ranked.html, into the folder `out`; returns its path.

    root: where the images are now, if not where the file says (the dataset's folder). figures: the
    folder of the curves as SVG and PNG (default: out). kind: of another toolbox's file, as for
    `open_source`. Raises UserError as `score` and `ranked_lists` do, and where a file cannot be
    written.
    """
    with open_source(file, kind) as source:
        wanted = wanted or Wanted()
        check_wanted(source, wanted)
        [scored] = score(
            source, options=Options(top_k=TOP), camera_pairs=True, verification=True
        )
        assert scored.verification is not None
        small = Thumbnails(root)
        found = ranked_lists(source, scored.result, wanted)
        parts = [
            _curves(scored.verification, out, figures or out),
            _confusions(scored, small),
            _camera_pairs(scored),
            _lists(source, found, wanted, small),
        ]
        top = join(_summary(scored), _missing(source, small))
        document = page(f"Ranked lists: {source.dataset}", top, _links(), *parts, style=STYLE)
    # names of files need not be UTF-8; what is not becomes a question mark
    _write(out / NAME, document.encode("utf-8", "replace").decode("utf-8"))
    return out / NAME


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _section(name: str, *parts: object) -> Html:
    return section(TITLES[name], *parts, id_=name)


def _links() -> Html:
    """Where the sections are: the lists come last, after tables that may be long."""
    links = [link(f"#{name}", title) for name, title in TITLES.items()]
    return element("p", *(part for one in links for part in (one, element("br"))))


# ---- numbers ----


def _summary(scored: Score) -> Html:
    source, result = scored.source, scored.result
    cmc = result.as_json(RANKS)["cmc"]
    numbers = {"mAP": result.mAP, "mINP": result.mINP} | {f"Rank-{r}": cmc[r] for r in cmc}
    skipped = f", and {result.skipped:,} without a match left out" if result.skipped else ""
    counted = int((source.gallery.identities != JUNK).sum())
    rows = [
        ("file", source.where), ("dataset", source.dataset),
        ("protocol", f"{source.protocol}: {PROTOCOLS[source.protocol]}"),
        ("settings", settings_text(scored.settings)),
        ("queries", f"{result.queries:,}{skipped}"),
        ("images to draw from" if source.protocol == "random_gallery" else "gallery images",
         f"{counted:,}"),
        *((name, f"{value:.4f}") for name, value in numbers.items()),
    ]
    remark = note(
        f"The numbers above are means over {DRAWS} draws. Lists, confusions, and curves below are "
        "of the first draw alone."
    ) if source.protocol == "random_gallery" else Html("")
    shown = element("div", table(["", "metrics are fractions"], rows), class_="summary")
    return join(shown, remark)


def _missing(source: Source, small: Thumbnails) -> Html:
    """Say which images are not shown, and what to do about it."""
    if None in (source.asking.paths, source.gallery.paths):
        return note("The file tells no paths of images: rows of it, from 0, stand in their place.")
    if not small.missing:
        return Html("")
    names = ", ".join(small.missing[:NAMED])
    more = f" and {len(small.missing) - NAMED:,} more" if len(small.missing) > NAMED else ""
    return note(
        f"{len(small.missing):,} of {small.asked:,} images on this page are not there any more, or "
        f"cannot be read, and are grey boxes: {names}{more}. Say where they are now (--root DIR)"
        ", or make the features anew where they are; features made on another machine tell its "
        "paths."
    )


def _curves(found: Verification, out: Path, folder: Path) -> Html:
    """The ROC curve and the histograms, which are written into the folder as well."""
    pairs = f"{found.genuine_pairs:,} genuine and {found.impostor_pairs:,} impostor pairs"
    drawn = {
        "roc": (draw_roc(found), f"ROC curve over {pairs}: {in_words(found)}."),
        "similarities": (
            draw_similarities(found),
            f"How alike images of one identity are (genuine pairs, solid), and images of two "
            f"(impostor pairs, dashed): {pairs}, each as shares of their own number.",
        ),
    }
    shown = []
    for name, (picture, caption) in drawn.items():
        try:
            files = save(picture, folder / name)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None
        links = [os.path.relpath(file, out) for file in files]
        shown.append(figure(as_svg(picture), caption, files=links))
    return _section("curves", *shown)


def _camera_pairs(scored: Score) -> Html:
    """mAP of each query camera in the gallery of each other camera, and the worst of them."""
    pairs: Sequence[CameraPair] = scored.camera_pairs or ()
    if not pairs:
        return _section("cameras", *(note(f"{said}.") for said in scored.notes))
    worst = sorted(pairs, key=lambda pair: pair.mAP)[:WORST_PAIRS]
    known = {(pair.query_camera, pair.gallery_camera): pair for pair in pairs}
    asking, asked = (sorted({key[side] for key in known}) for side in (0, 1))
    rows, marked = [], []
    for one in asking:
        line = [known.get((one, other)) for other in asked]
        rows.append([one, *(pair and f"{pair.mAP:.3f}" for pair in line)])
        marked.append([False, *(pair in worst for pair in line)])
    listed = [
        (pair.query_camera, pair.gallery_camera, pair.queries, f"{pair.mAP:.4f}",
         f"{pair.rank1:.4f}")
        for pair in worst
    ]
    return _section(
        "cameras",
        element("p", "Queries of one camera, ranked among the gallery images of one other alone. "
                f"Cameras are numbered as in the dataset. The {len(worst)} lowest are marked, and "
                "listed below."),
        table(["query \\ gallery", *asked], rows, marked=marked),
        element("h3", "Lowest"),
        table(["query camera", "gallery camera", "queries", "mAP", "Rank-1"], listed),
    )


# ---- images ----


def _confusions(scored: Score, small: Thumbnails) -> Html:
    source = scored.source
    asking, gallery = source.asking, source.gallery
    found = hardest_confusions(scored.result, asking.identities, gallery.identities, CONFUSIONS)
    if not found:
        return _section("confusions", note(f"No query has a wrong image among its first {TOP}."))
    rows = [
        (
            _picture(small, asking.paths, one.query, f"query of identity {one.identity}"),
            one.identity,
            _picture(small, gallery.paths, one.gallery, f"image of identity {one.wrong}"),
            one.wrong, f"{one.queries} of {one.asked}", one.images,
            int((gallery.identities == one.wrong).sum()), f"{one.distance:.3f}",
        )
        for one in found
    ]
    return _section(
        "confusions",
        element("p", f"The {len(found)} pairs most often confused, with the example that is "
                "nearest. Ahead: how many of the identity's queries have an image of the other "
                f"one before their first match, within their first {TOP}. Images: all of the "
                f"other one's images within the first {TOP} of these queries. In all: how many it "
                "has; an identity with very many may stand for strangers (in Market-1501's layout, "
                "0 does)."),
        element("div", table([
            "query", "identity", "taken for", "identity", "ahead", "images", "in all", "distance",
        ], rows), class_="pairs"),
    )


def _lists(source: Source, found: Lists, wanted: Wanted, small: Thumbnails) -> Html:
    lines = [_row(source, one, small) for one in found.shown]
    return _section(
        "lists",
        element("p", _chosen(len(lines), found.among, wanted)),
        element("p", f"Each row is a query and the {TOP} gallery images nearest to it, the nearest "
                "first, with identity, camera and Euclidean distance at unit length. ",
                element("span", "✓ and a solid green frame", class_="good"),
                ": the same identity; ",
                element("span", "✗ and a dashed red frame", class_="bad"), ": another one. Rows "
                "scroll sideways."),
        *lines,
    )


def _chosen(count: int, among: int, wanted: Wanted) -> str:
    """How the queries were chosen, and of how many."""
    if wanted.queries:
        return f"The queries asked for: {count:,} of {among:,}."
    if wanted.cameras:
        asking, asked = wanted.cameras
        return (
            f"Queries under camera {asking}, ranked among the gallery images under camera {asked} "
            "alone (so is their average precision), those first whose first match ranks worst, "
            f"then by average precision: {count:,} of {among:,}."
        )
    return f"The queries with the lowest average precision, worst first: {count:,} of {among:,}."


def _row(source: Source, one: RankedList, small: Thumbnails) -> Html:
    has_cameras = source.protocol != "random_gallery"
    asking = [
        _picture(small, source.asking.paths, one.row, f"query of identity {one.identity}"),
        element("b", f"query {one.row}"),
        *_labels(one.identity, one.camera if has_cameras else None),
    ]
    if one.average_precision is None:
        asking.append(element("div", "no match in the gallery"))
    else:
        asking.append(element("div", f"AP {one.average_precision:.4f}"))
        asking.append(element("div", f"match at rank {one.first_rank:,}"))
    hits = [
        _hit(source, hit, place, small, has_cameras=has_cameras)
        for place, hit in enumerate(one.hits, start=1)
    ]
    return element("div", element("div", *asking, class_="asking"), *hits, class_="list wide")


def _hit(source: Source, hit: Hit, place: int, small: Thumbnails, *, has_cameras: bool) -> Html:
    sign, word, colour = ("✓", "match", "good") if hit.is_match else ("✗", "mistake", "bad")
    alt = f"rank {place}, {word}: identity {hit.identity}"
    return element(
        "div", _picture(small, source.gallery.paths, hit.row, alt),
        element("b", place, " ", element("span", sign, class_=colour)),
        *_labels(hit.identity, hit.camera if has_cameras else None),
        element("div", f"{hit.distance:.3f}"), class_=word,
    )


def _labels(identity: int, camera: int | None) -> list[Html]:
    lines = [element("div", f"identity {identity}")]
    return lines if camera is None else [*lines, element("div", f"camera {camera}")]


def _picture(small: Thumbnails, paths: Sequence[str] | None, row: int, alt: str) -> Html:
    return small(None if paths is None else paths[row], alt, f"row {row}")
