"""The report on runs and sweeps: what it says, what it says is missing, how a browser shows it."""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from harness.base.errors import UserError
from harness.base.files import write_json, write_text
from harness.config.build import build
from harness.config.values import to_yaml
from harness.reporting import drawing, page, runs_page
from harness.runs.run import Run
from svll.config import Config
from svll.reports import report as report_module
from svll.reports.report import best_runs, read_subject, read_subjects, write_report
from tests.browser import Tab, browser, needs_chromium

NASTY = "<script>alert(1)</script>"
POINTS = [(0.0, 1e-4), (0.0, 1e-3), (0.8, 1e-4), (0.8, 1e-3)]
SEEDS = (1, 2)


def value_at(weight: float, lr: float, seed: int) -> float:
    return 0.5 + 0.1 * weight + 20 * lr + 0.001 * seed


def make_run(folder: Path, weight: float, lr: float, seed: int, *, name: str = "run") -> Run:
    run = Run(folder / name)
    config = build(Config, [])
    config.seed, config.stage2.vss_weight, config.stage2.lr = seed, weight, lr
    run.create(to_yaml(config))
    for stage, terms in (("stage1", ("i2t", "t2i")), ("stage2", ("id", "triplet", "vss"))):
        for epoch in range(1, 4):
            run.log_metrics({
                "kind": "epoch", "stage": stage, "epoch": epoch, "step": 10 * epoch,
                "loss": 9.0 / epoch, "losses": dict.fromkeys(terms, 3.0 / epoch),
                "lr": lr, "images_per_s": 400.0 + epoch, "memory_gb": 1.5,
                **({"validation": {"mAP": 0.1 * epoch}} if stage == "stage2" else {}),
            })
    return run


def finish(run: Run, mAP: float) -> None:
    write_json(run.result_file, {
        "mAP": mAP - 0.1, "mINP": 0.3, "cmc": {"1": 0.5}, "validation": {"mAP": mAP},
        "initial": {"mAP": 0.2}, "fingerprint": "feedbeef", "seconds": 90.0,
    })
    run.set_status("complete", host="node7", attempts=2, seconds=90.0)
    write_json(run.environment_file, {"python": "3.11.9", "git": {"commit": "c0ffee"}})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight complete trials, of four points with two seeds, one that failed and one that trains."""
    folder = tmp_path_factory.mktemp("runs") / "weights"
    trials = []
    for weight, lr in POINTS:
        for seed in SEEDS:
            run = make_run(folder, weight, lr, seed, name=f"{weight}-{lr}-{seed}")
            finish(run, value_at(weight, lr, seed))
            trials.append((weight, lr, seed, run))
    failed = make_run(folder, 3.0, 1e-3, 1, name="failed")
    failed.set_status("failed", error=f"ValueError: {NASTY}")
    going = make_run(folder, 4.0, 1e-3, 1, name="going")
    going.set_status("running", host="node8", attempts=1)
    trials += [(3.0, 1e-3, 1, failed), (4.0, 1e-3, 1, going)]
    write_json(folder / "sweep.json", {
        "name": "weights", "metric": "validation.mAP", "mode": "max", "trials": [
            {"point": {"stage2.vss_weight": weight, "stage2.lr": lr}, "seed": seed,
             "signature": run.signature} for weight, lr, seed, run in trials
        ],
    })
    return folder


class Read(HTMLParser):
    """A document's text, the cells of its tables, and what it refers to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text, self.tables, self.targets, self.tags = "", [], [], []
        self.headings: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [v for k, v in attrs if k in ("href", "src") and v is not None]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"]:  # plotly, and the data of plots
            return
        self.text += data
        inside = next((tag for tag in reversed(self.tags) if tag != "a"), "")
        if inside in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif inside in ("h1", "h2", "h3") and not self.headings[-1]:
            self.headings[-1] = data


@pytest.fixture(scope="module")
def report(sweep: Path) -> Path:
    return write_report([sweep], sweep / "report.html")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures empty, for pages that are only read: most of the time goes into drawing."""
    monkeypatch.setattr(drawing, "as_svg", lambda figure: "<svg></svg>")
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: None)


def test_a_sweep_is_ranked_by_its_means_and_every_trial_has_a_row(report: Path) -> None:
    read = Read(report)
    assert read.headings[:2] == [
        "Report on weights", "weights: validation.mAP over the searched keys"
    ]
    assert "weights: selected on validation (validation.mAP, max)" in read.headings
    ranking, runs = read.tables[:2]
    assert ranking[0][:4] == ["rank", "stage2.vss_weight", "stage2.lr", "seeds"]
    best = sorted(POINTS, key=lambda p: -value_at(*p, 1))
    assert [(float(row[1]), float(row[2])) for row in ranking[1:]] == best
    means = [sum(value_at(*p, s) for s in SEEDS) / 2 for p in best]
    assert [row[4] for row in ranking[1:]] == [f"{mean:.4f}" for mean in means]
    assert runs[0][:3] == ["run", "files", "state"]
    assert [row[2] for row in runs[1:]] == ["complete"] * 8 + ["failed", "interrupted"]
    first = dict(zip(runs[0], runs[1], strict=True))
    assert first["run"] == "vss_weight=0.8 lr=0.001 seed=1"
    told = [first[k] for k in (
        "host", "attempts", "epochs", "minutes (last attempt)", "validation mAP"
    )]
    assert told == ["node7", "2", "6", "1.5", f"{value_at(0.8, 1e-3, 1):.4f}"]
    assert "10 trials: 8 complete, 1 failed, 1 interrupted" in read.text
    assert "feedbeef" in read.text
    assert "c0ffee" in read.text


def test_it_needs_no_other_file_and_every_link_is_to_one_that_is_there(report: Path) -> None:
    read = Read(report)
    assert "link" not in read.tags
    assert {"weights-points", "weights-map", "stage1-losses", "stage2-course"} <= {
        Path(target).stem for target in read.targets
    }
    for target in read.targets:
        assert (report.parent / target).is_file(), target


def test_what_runs_lack_is_said_with_their_words_escaped(report: Path, sweep: Path) -> None:
    read = Read(report)
    assert f"vss_weight=3.0 lr=0.001 seed=1: failed: ValueError: {NASTY}" in read.text
    assert "vss_weight=4.0 lr=0.001 seed=1: interrupted" in read.text


@pytest.mark.usefixtures("undrawn")
def test_of_two_runs_the_first_differing_key_is_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, weight, 1e-3, 1, name=str(weight)) for weight in (0.0, 0.8)]
    finish(runs[0], 0.6)
    out = write_report([run.folder for run in runs], tmp_path / "both.html")
    read = Read(out)
    assert "The first differing key is stage2.vss_weight: 0.0 against 0.8." in read.text
    assert ["stage2.vss_weight", "0.0", "0.8"] in [row for table in read.tables for row in table]
    assert "0.8: new" in read.text


def test_runs_of_an_older_version_and_without_a_log_are_shown_as_far_as_they_go(
    tmp_path: Path
) -> None:
    run = Run(tmp_path / "old")
    write_text(run.config_file, "stage2: {lr: 1.0, a_key_of_then: 7}\n")
    broken = Run(tmp_path / "broken")
    write_text(broken.config_file, "stage2: [\n")
    read = Read(write_report([tmp_path], tmp_path / "report.html"))
    assert "broken: config.yaml is missing or cannot be read" in read.text
    assert "Nothing has been logged yet." in read.text
    assert "No run has recorded its environment: an older version wrote them." in read.text
    assert ["stage2.a_key_of_then", "?", "7"] in [row for table in read.tables for row in table]


def test_a_folder_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run's folder nor a sweep's.* in it$"):
        write_report([tmp_path], tmp_path / "report.html")


def test_a_folder_of_sweeps_is_refused_with_their_names(tmp_path: Path) -> None:
    for file in ("b/sweep.json", "a/0123/config.yaml", "cache/data/x.h5"):
        write_text(tmp_path / file, "{}")
    with pytest.raises(UserError) as caught:
        write_report([tmp_path], tmp_path / "report.html")
    names = f"{tmp_path}/a, {tmp_path}/b"
    assert str(caught.value).endswith(f"; give one of the folders in it: {names}")


@pytest.mark.usefixtures("undrawn")
def test_a_section_that_cannot_be_made_is_a_remark_and_an_error(
    sweep: Path, tmp_path: Path
) -> None:
    def fails(runs: Mapping[str, Path], folder: Path) -> page.Html:
        raise UserError(f"no features: {NASTY}")

    def works(runs: Mapping[str, Path], folder: Path) -> page.Html:
        return page.section("More", *runs, folder.name)

    with pytest.raises(UserError, match="no features"):
        write_report([sweep], tmp_path / "report.html", [fails, works])
    read = Read(tmp_path / "report.html")
    assert f"no features: {NASTY}" in read.text
    assert read.headings[-1] == "More"


def test_a_report_replaces_its_own_page_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "_curves", lambda runs, figures: page.Html(""))
    run, other = (make_run(tmp_path, 0.0, 1e-3, 1, name=name).folder for name in ("a", "b"))
    out = write_report([run, other], tmp_path / "both.html")
    write_report([other, run], out)
    for folders in ([run], [other], [run, other, other.parent]):
        with pytest.raises(UserError, match=rf"^{out}: is the report on {run}, {other}; name "):
            write_report(folders, out)
    own = write_report([run], run / "report.html")
    with pytest.raises(UserError, match=rf"^{own}: is the report on {run}; name another file"):
        write_report([run, other], own)
    own.write_text("of an earlier version")
    write_report([run], own)
    out.write_text("my notes")
    with pytest.raises(UserError, match=rf"^{out}: is not a report; name another file"):
        write_report([run, other], out)
    assert out.read_text() == "my notes"


@pytest.mark.usefixtures("undrawn")
def test_folders_of_one_name_are_told_apart_in_the_page_and_among_its_figures(
    sweep: Path, tmp_path: Path
) -> None:
    copies = [shutil.copytree(sweep, tmp_path / name / "weights") for name in ("a", "b")]
    read = Read(write_report(copies, tmp_path / "report.html"))
    assert read.text.count("a-weights: vss_weight=0.8 lr=0.001 seed=1") >= 1
    maps = {target for target in read.targets if target.endswith("-map.svg")}
    assert maps == {"figures/a-weights-map.svg", "figures/b-weights-map.svg"}
    best = [f"{name}-weights: vss_weight=0.8 lr=0.001 seed=1" for name in "ab"]
    assert list(best_runs(read_subjects(copies))) == best


@pytest.mark.usefixtures("undrawn")
def test_damaged_files_of_a_run_are_named_and_the_others_are_shown(
    sweep: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sweep, tmp_path / "weights")
    files = [folder / f"{weight}-{lr}-1" / name for (weight, lr), name in zip(
        POINTS, ("status.json", "metrics.jsonl", "result.json", "config.yaml"), strict=True
    )]
    for file in files:
        file.write_text("{\n{}\n" if file.suffix == ".jsonl" else "{")
    read = Read(write_report([folder], tmp_path / "report.html"))
    for file in files[:3]:
        assert str(file) in read.text
    assert "config.yaml is missing or cannot be read" in read.text
    states = [row[2] for row in read.tables[1][1:]]
    assert states.count("unreadable") == 1
    assert states.count("complete") == 7


def test_labels_are_short_and_tell_equal_last_words_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0.0, 1e-3, 1)
    write_json(tmp_path / "sweep.json", {
        "name": "rates", "metric": "validation.mAP", "mode": "max", "trials": [{
            "point": {"stage1.lr": 0.00035123456789, "stage2.lr": 0.1, "stage2.pad": 4}, "seed": 1,
            "signature": run.signature,
        }],
    })
    [labelled] = read_subject(tmp_path).runs
    assert labelled.label == "stage1.lr=0.0003512 stage2.lr=0.1 pad=4 seed=1"


@pytest.mark.usefixtures("undrawn")
def test_every_test_set_has_its_numbers_and_takers_of_stage_1_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0.0, 1e-3, 1)
    finish(run, 0.6)
    sets = {name: {"mAP": value, "cmc": {"1": 0.9}} for name, value in (("A", 0.11), ("B", 0.22))}
    write_json(run.result_file, {**run.result(), "tests": sets})
    write_json(run.folder / "stage1.json", {"of": "other", "epochs": 3})
    read = Read(write_report([run.folder], tmp_path / "report.html"))
    row = dict(zip(*read.tables[0], strict=True))
    assert (row["A mAP"], row["B mAP"], row["B Rank-1"]) == ("0.1100", "0.2200", "0.9000")
    assert "1 of 1 runs reused stage 1 of another run (stage1.json in their folders)" in read.text


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as opened:
        yield opened


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_browser_shows_it_on_a_phone_and_in_the_dark(
    tab: Tab, report: Path, width: int, dark: bool
) -> None:
    tab.open(report, width=width, dark=dark)
    assert tab.value_of("document.documentElement.scrollWidth") <= width
    tab.wait_for("document.querySelector('figure.plot svg text') !== null")
    assert tab.value_of("document.querySelectorAll('figure.plot').length") >= 14
    assert tab.value_of("document.title") == "Report on weights"
    assert tab.requests() == []
    assert tab.complaints() == []
    shot: Image.Image = tab.screenshot()
    background = shot.getpixel((1, shot.height - 1))
    assert (max(background) < 60) if dark else (min(background) > 230)
    text = tab.value_of("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert text == ("rgb(223, 229, 236)" if dark else "rgb(31, 41, 51)")
    assert len(shot.getcolors(1 << 24) or []) > 20


@needs_chromium
def test_a_browser_executes_nothing_of_a_page_but_its_own_scripts(
    tab: Tab, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    script = page.Html("<script>document.title = 'executed'</script>")  # as if not escaped
    file.write_text(page.page("title", script, page.element("p", "text"),
                              scripts=["document.body.append('ours')"]))
    tab.open(file)
    assert tab.value_of("document.title") == "title"
    assert tab.value_of("document.body.textContent").strip().endswith("'ours')ours")
    assert "Content Security Policy" in "".join(tab.complaints())


def test_figures_are_written_as_pictures_too(report: Path) -> None:
    picture = Image.open(io.BytesIO((report.parent / "figures/weights-map.png").read_bytes()))
    assert picture.size[0] > 500


def test_damaged_files_of_a_run_are_named_and_all_runs_are_shown(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = make_run(tmp_path, 1.0, 1e-3, 1, name=name)
        finish(run, 0.5)
    for file in (run.status_file, run.result_file, run.changes_file, run.environment_file,
                 run.folder / "stage1.json"):
        file.write_text('{"state": 5, "mAP": NaN}' if file == run.result_file else "[5]")
    read = Read(write_report([tmp_path], tmp_path / "report.html"))
    for file in (run.status_file, run.result_file, run.changes_file, run.environment_file):
        assert f"b: {file}: cannot be read" in read.text
    rows = [row for table in read.tables for row in table]
    assert any(row[:1] == ["a"] and "0.5000" in row for row in rows)
    assert any(row[:1] == ["b"] and row[2] == "unreadable" for row in rows)


@pytest.mark.usefixtures("undrawn")
def test_of_many_runs_that_failed_the_first_are_told_and_the_others_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = to_yaml(build(Config, []))
    for number in range(30):
        run = Run(tmp_path / f"r{number:02}")
        run.create(config)
        run.set_status("failed", error="no memory")
    monkeypatch.setattr(runs_page, "read_yaml", counted := Counted(runs_page.read_yaml))
    read = Read(write_report([tmp_path], tmp_path / "report.html"))
    assert read.text.count(": failed: no memory") == 20
    assert "and 10 more such lines" in read.text
    assert counted.calls <= 12  # those whose configurations are compared


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        return self.function(*given)
