"""ranked.html: what a model ranks right and wrong, in numbers, curves and images.

The page is self-contained; its curves are also written as files.
"""

from collections.abc import Sequence
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.reporting.drawing import embed
from harness.reporting.page import Html, element, join, link, note, page, section, table
from svll.base.protocol_names import PROTOCOLS
from svll.evaluation.confusions import hardest_confusions
from svll.evaluation.engine.feature_rows import JUNK
from svll.evaluation.feature_files import ranked_lists as lists
from svll.evaluation.feature_files.ranked_lists import TOP, Hit, RankedList, Wanted
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
    "curves": "Verification",
    "confusions": "Confused identities",
    "cameras": "Mean average precision by camera pair",
    "lists": "Ranked lists",
}
"""Title of each section, by its id."""
WORST_PAIRS = 5  # camera pairs that are marked and listed
MOST_NAMED = 3  # missing images whose paths are given
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
    figures: Path | None = None,
) -> Path:
    """Write the page of a feature file, ranked.html, into the folder `out`; returns its path.

    root: where the images are now, if not where the file says (the dataset's folder). figures: the
    folder of the curves as SVG and PNG (default: out). Raises UserError as `score` and
    `ranked_lists` do, and where a file cannot be written.
    """
    wanted = wanted or Wanted()
    with open_source(file) as source:
        lists.check_wanted(source, wanted)
        [scored] = score(source, options=Options(top_k=TOP), camera_pairs=True, verification=True)
        assert scored.verification is not None
        small = Thumbnails(root)
        parts = [
            _curves(scored.verification, out, figures or out),
            _confusions(scored, small),
            _camera_pairs(scored),
            _lists(source, lists.ranked_lists(source, scored.result, wanted), wanted, small),
        ]
        links = [(link(f"#{name}", title), element("br")) for name, title in TITLES.items()]
        document = page(
            f"Ranked lists: {source.dataset}", _summary(scored), _missing(source, small),
            element("p", *(part for line in links for part in line)), *parts, style=STYLE,
        )
    try:
        write_text(out / NAME, document, errors="replace")  # file names need not be UTF-8
    except OSError as error:
        raise UserError(f"{out / NAME}: cannot be written: {error.strerror or error}") from None
    return out / NAME


def _section(name: str, *parts: object) -> Html:
    return section(TITLES[name], *parts, id_=name)


def _summary(scored: Score) -> Html:
    source, result = scored.source, scored.result
    is_random = source.protocol == "random_gallery"
    cmc = result.as_json(RANKS)["cmc"]
    numbers = {"mAP": result.mAP, "mINP": result.mINP} | {f"Rank-{r}": cmc[r] for r in cmc}
    skipped = f", and {result.skipped:,} without a match left out" if result.skipped else ""
    rows = [
        ("file", source.where), ("dataset", source.dataset),
        ("protocol", f"{source.protocol}: {PROTOCOLS[source.protocol]}"),
        ("settings", settings_text(scored.settings)),
        ("queries", f"{result.queries:,}{skipped}"),
        ("images to draw from" if is_random else "gallery images",
         f"{int((source.gallery.identities != JUNK).sum()):,}"),
        *((name, f"{value:.4f}") for name, value in numbers.items()),
    ]
    summary = element("div", table(["", "metrics are fractions"], rows), class_="summary")
    return join(summary, note(
        f"The numbers above are means over {DRAWS} draws. Lists, confusions, and curves below show "
        "the first draw only."
    ) if is_random else None)


def _missing(source: Source, small: Thumbnails) -> Html:
    """Return a note on images that are not shown, and how to find them."""
    if None in (source.asking.paths, source.gallery.paths):
        return note("The file has no image paths: row numbers, from 0, stand in for the images.")
    if not small.missing:
        return Html("")
    names = ", ".join(small.missing[:MOST_NAMED])
    rest = len(small.missing) - MOST_NAMED
    more = f" and {rest:,} more" if rest > 0 else ""
    return note(f"{len(small.missing):,} of {len(small.data):,} images on this page are missing or "
                f"cannot be read (grey boxes): {names}{more}. Give their folder (--root DIR), or "
                "extract the features again where the images are; features from another machine "
                "have its paths.")


def _curves(verification: Verification, out: Path, folder: Path) -> Html:
    """Return the ROC curve and the histograms, also written into `folder`."""
    genuine, impostor = verification.genuine_pairs, verification.impostor_pairs
    pairs = f"{genuine:,} genuine and {impostor:,} impostor pairs"
    return _section(
        "curves",
        embed(draw_roc(verification), folder / "roc", out,
              f"ROC curve over {pairs}: {in_words(verification)}."),
        embed(
            draw_similarities(verification), folder / "similarities", out,
            "Similarity of two images of one identity (genuine pairs, solid) and of two identities "
            f"(impostor pairs, dashed): {pairs}, each histogram as shares of its pairs.",
        ),
    )


def _camera_pairs(scored: Score) -> Html:
    """Return mAP of each query camera in the gallery of each other camera, and the worst pairs."""
    pairs = scored.camera_pairs or ()
    if not pairs:
        return _section("cameras", *(note(f"{text}.") for text in scored.notes))
    worst = sorted(pairs, key=lambda pair: pair.mAP)[:WORST_PAIRS]
    known = {(pair.query_camera, pair.gallery_camera): pair for pair in pairs}
    rows, columns = (sorted({key[side] for key in known}) for side in (0, 1))
    grid = {camera: [known.get((camera, other)) for other in columns] for camera in rows}
    return _section(
        "cameras",
        element("p", "Queries of one camera, ranked among the gallery images of one other camera. "
                f"Cameras are numbered as in the dataset. The {len(worst)} lowest values are marked"
                " and listed below."),
        table(
            ["query \\ gallery", *columns],
            [[camera, *(pair and f"{pair.mAP:.3f}" for pair in line)]
             for camera, line in grid.items()],
            marked=[[False, *(pair in worst for pair in line)] for line in grid.values()],
        ),
        element("h3", "Lowest"),
        table(["query camera", "gallery camera", "queries", "mAP", "Rank-1"], [
            (pair.query_camera, pair.gallery_camera, pair.queries, f"{pair.mAP:.4f}",
             f"{pair.rank1:.4f}") for pair in worst
        ]),
    )


def _confusions(scored: Score, small: Thumbnails) -> Html:
    asking, gallery = scored.source.asking, scored.source.gallery
    confusions = hardest_confusions(scored.result, asking.identities, gallery.identities,
                                    CONFUSIONS)
    if not confusions:
        return _section("confusions", note(f"No query has a wrong image among its first {TOP}."))
    rows = [
        (
            _picture(small, asking.paths, one.query, f"query of identity {one.identity}"),
            one.identity,
            _picture(small, gallery.paths, one.gallery, f"image of identity {one.wrong}"),
            one.wrong, f"{one.queries} of {one.asked}", one.images,
            int((gallery.identities == one.wrong).sum()), f"{one.distance:.3f}",
        )
        for one in confusions
    ]
    return _section(
        "confusions",
        element("p", f"The {len(rows)} pairs confused most often, each with its nearest example. "
                "Ahead: queries of the identity that have an image of the other identity before "
                f"their first match, within their first {TOP}. Images: all images of the other "
                f"identity within the first {TOP} of these queries. In all: its images in the "
                "gallery; an identity with very many may stand for strangers (0 does in "
                "Market-1501's layout)."),
        element("div", table([
            "query", "identity", "taken for", "identity", "ahead", "images", "in all", "distance",
        ], rows), class_="pairs"),
    )


def _lists(source: Source, selected: lists.Lists, wanted: Wanted, small: Thumbnails) -> Html:
    return _section(
        "lists",
        element("p", _selection(len(selected.shown), selected.among, wanted)),
        element("p", f"Each row is a query and its {TOP} nearest gallery images, the nearest "
                "first, with identity, camera and Euclidean distance at unit length. ",
                element("span", "✓ and a solid green frame", class_="good"),
                ": the same identity; ",
                element("span", "✗ and a dashed red frame", class_="bad"), ": another one. Rows "
                "scroll sideways."),
        *(_row(source, one, small) for one in selected.shown),
    )


def _selection(count: int, among: int, wanted: Wanted) -> str:
    """Return how the queries were selected, and out of how many."""
    selected = f"{count:,} of {among:,}."
    if wanted.queries:
        return f"The queries asked for: {selected}"
    if wanted.cameras:
        query, gallery = wanted.cameras
        return (f"Queries of camera {query}, ranked among the gallery images of camera {gallery} "
                "only (also for their average precision); worst rank of the first match first, "
                f"then lowest average precision: {selected}")
    return f"The queries with the lowest average precision, worst first: {selected}"


def _row(source: Source, one: RankedList, small: Thumbnails) -> Html:
    lines = ["no match in the gallery"]
    if one.average_precision is not None:
        lines = [f"AP {one.average_precision:.4f}", f"match at rank {one.first_rank:,}"]
    asking = [
        _picture(small, source.asking.paths, one.row, f"query of identity {one.identity}"),
        element("b", f"query {one.row}"), *_labels(source, one),
        *(element("div", line) for line in lines),
    ]
    hits = [_hit(source, hit, rank, small) for rank, hit in enumerate(one.hits, start=1)]
    return element("div", element("div", *asking, class_="asking"), *hits, class_="list wide")


def _hit(source: Source, hit: Hit, rank: int, small: Thumbnails) -> Html:
    sign, kind, colour = ("✓", "match", "good") if hit.is_match else ("✗", "mistake", "bad")
    alt = f"rank {rank}, {kind}: identity {hit.identity}"
    return element("div", _picture(small, source.gallery.paths, hit.row, alt),
                   element("b", rank, " ", element("span", sign, class_=colour)),
                   *_labels(source, hit), element("div", f"{hit.distance:.3f}"), class_=kind)


def _labels(source: Source, one: RankedList | Hit) -> list[Html]:
    lines = [element("div", f"identity {one.identity}")]
    if source.protocol != "random_gallery":  # which has no cameras
        lines.append(element("div", f"camera {one.camera}"))
    return lines


def _picture(small: Thumbnails, paths: Sequence[str] | None, row: int, alt: str) -> Html:
    return small(None if paths is None else paths[row], alt, f"row {row}")
