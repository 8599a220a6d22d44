"""Plots and tables of runs in a real browser, with mouse and keyboard."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from harness.base.files import write_json_lines
from harness.reporting import page
from harness.reporting.curves import (
    LabelledRun,
    curve_plots,
    draw_curves,
    logged,
    losses,
    metrics_of,
    stages_of,
)
from harness.reporting.plots import PLOT, document, plain, plot
from harness.runs.run import Run
from tests.browser import Tab, browser, needs_chromium

NASTY = "</script><script>document.title = 'executed'</script><!-- <b>&amp;"
COUNT = 60
SIGNATURES = [f"{number:012x}" for number in range(COUNT)]
VALUES = [(37 * number % COUNT) / 100 for number in range(COUNT)]  # each once, in no order
LOGS = [[3.0, 1.0, 2.5, 0.5], [4.0, 2.0, 1.0, 0.25]]
AREAS = "document.querySelectorAll('.area')"


def dots() -> go.Figure:
    """A dot for each run."""
    return go.Figure(
        go.Scatter(x=list(range(COUNT)), y=VALUES, mode="markers", customdata=SIGNATURES,
                   marker={"size": 12}, text=[plain(NASTY)] * COUNT),
        {"title": {"text": plain(NASTY)}, "xaxis": {"range": [-1, COUNT]}},
    )


def curves(folder: Path) -> page.Html:
    """The curves of two runs, as the report puts them on a page."""
    runs = []
    for number, values in enumerate(LOGS):
        run = Run(folder / SIGNATURES[number])
        write_json_lines(run.metrics_file, [
            {"kind": "epoch", "stage": "s", "epoch": epoch, "loss": value, "losses": {"a": value}}
            for epoch, value in enumerate(values, start=1)
        ])
        runs.append(logged(LabelledRun(f"run {number} {NASTY}", run)))
    return page.join(page.element("div", class_="keys"), curve_plots(runs, "s", losses, folder))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a plot of dots, curves, and a table of 60 runs."""
    folder = tmp_path_factory.mktemp("plots")
    rows = [[f"run {n}", page.link(f"{name}/log.txt", "log"), VALUES[n] if n else None]
            for n, name in enumerate(SIGNATURES)]
    body = page.join(
        plot(dots(), "dots", NASTY, folder), curves(folder),
        page.runs_table(["run", "files", "value"], rows, [[name] for name in SIGNATURES]),
    )
    file = folder / "page.html"
    file.write_text(document("title", body), encoding="utf-8")
    return file


def test_no_text_of_a_plot_ends_its_script_and_its_data_stay_what_they_were(
    tmp_path: Path
) -> None:
    made = plot(go.Figure(go.Bar(x=[NASTY], y=[1.5]), {"title": {"text": NASTY}}), NASTY, NASTY,
                tmp_path)
    [data] = re.findall('<script type="application/json">(.*?)</script>', made, re.DOTALL)
    assert made.count("</script") == 1
    assert "<!--" not in made
    assert json.loads(data)["data"][0]["x"] == [NASTY]
    assert json.loads(data)["layout"]["title"]["text"] == NASTY


def test_a_page_has_plotly_once_if_it_has_a_plot_and_no_script_if_it_has_nothing_to_do(
    tmp_path: Path
) -> None:
    text = page.element("p", str(PLOT), str(page.RUNS))  # of a user: it is escaped
    assert "<script" not in document("t", page.join(text, page.table(["a"], [["b"]])))
    table = page.runs_table(["a"], [["b"]], [["c"]])
    assert document("t", table).count("<script") == 1
    made = plot(dots(), "dots", None, tmp_path)
    found = document("t", page.join(made, made, table))
    [packed] = re.findall('id="plotly">(.*?)</script>', found)
    script = gzip.decompress(base64.b64decode(packed))
    assert script.decode() == get_plotlyjs()
    assert base64.b64encode(sha256(script).digest()).decode() in found
    assert len(found.encode()) < 2_500_000


def test_a_plot_links_to_its_files_for_papers_if_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/dots.svg").touch()
    made = plot(dots(), "dots", "caption", tmp_path)
    assert re.findall('href="(.*?)"', made) == ["figures/dots.svg"]
    assert "figcaption" not in plot(dots(), "other", None, tmp_path)


def test_logs_are_read_once_and_drawn_as_files_and_as_plots_with_the_same_numbers(
    tmp_path: Path
) -> None:
    curves(tmp_path)
    runs = [logged(LabelledRun(str(n), Run(tmp_path / SIGNATURES[n]))) for n in (0, 1)]
    assert stages_of(runs) == ["s"]
    figure = draw_curves(runs, "s", losses)
    assert figure is not None
    made = curve_plots(runs, "s", losses, tmp_path)
    found = [json.loads(text) for text in re.findall(r'json">(.*?)</script>', made)]
    assert [one["layout"]["title"]["text"] for one in found] == ["loss", "a"]
    for axes, one in zip(figure.axes, found, strict=False):
        assert [list(line.get_ydata()) for line in axes.lines] == LOGS
        assert [trace["y"] for trace in one["data"]] == LOGS
        assert [trace["meta"] for trace in one["data"]] == SIGNATURES[:2]
    assert curve_plots(runs, "s", metrics_of(["other"]), tmp_path) == ""


# --- in a browser ---


@pytest.fixture(scope="module")
def opened() -> Iterator[Tab]:
    with browser() as tab:
        yield tab


@pytest.fixture
def tab(opened: Tab, file: Path) -> Tab:
    opened.open(file, width=1280)
    opened.wait_for("document.querySelector('.area').data")
    return opened


def rows(tab: Tab) -> list[list[Any]]:
    """The visible rows: name, value."""
    return list(tab.value_of(
        "[...document.querySelectorAll('tbody tr')].filter(row => row.offsetHeight)"
        ".map(row => [row.cells[0].textContent, row.cells[2].textContent])"
    ))


def chosen(tab: Tab) -> list[str]:
    return list(tab.value_of(
        "[...document.querySelectorAll('tr.chosen')].map(row => row.dataset.run)"
    ))


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_draws_plots_in_the_pages_colours_as_wide_as_the_window(
    opened: Tab, file: Path, width: int, dark: bool
) -> None:
    opened.open(file, width=width, dark=dark)
    opened.wait_for("document.querySelector('.area .main-svg') !== null")
    assert opened.value_of("document.title") == "title"
    assert opened.value_of("document.documentElement.scrollWidth") <= width
    drawn = opened.value_of("document.querySelector('.area .main-svg').clientWidth")
    assert width - 100 <= drawn <= width
    ink = "rgb(223, 229, 236)" if dark else "rgb(31, 41, 51)"
    text = "getComputedStyle(document.querySelector('.area .xtick text')).fill"
    assert opened.value_of(text) == ink
    title = opened.value_of("document.querySelector('.area .gtitle').textContent")
    assert title == NASTY
    other = {"name": "prefers-color-scheme", "value": "light" if dark else "dark"}
    opened.call("Emulation.setEmulatedMedia", features=[other])
    opened.wait_for(f"{text} != '{ink}'")
    assert opened.requests() == []
    assert opened.complaints() == []


@needs_chromium
def test_a_table_shows_its_first_50_rows_and_all_on_demand(tab: Tab) -> None:
    assert [name for name, _ in rows(tab)] == [f"run {n}" for n in range(50)]
    assert "50 of 60 rows" in tab.value_of("document.body.innerText")
    tab.click(".about button")
    assert len(rows(tab)) == 60


@needs_chromium
def test_a_click_on_a_heading_sorts_by_number_and_empty_cells_come_last(tab: Tab) -> None:
    known = sorted((value, f"run {n}") for n, value in enumerate(VALUES) if n)
    tab.click("th:nth-child(3) button")
    assert tab.value_of("document.querySelector('th:nth-child(3)').ariaSort") == "ascending"
    assert [name for name, _ in rows(tab)] == [name for _, name in known][:50]
    tab.press("Enter")  # the heading has the focus
    assert tab.value_of("document.querySelector('th:nth-child(3)').ariaSort") == "descending"
    tab.click(".about button")
    assert [name for name, _ in rows(tab)] == [name for _, name in known[::-1]] + ["run 0"]
    tab.click("th:nth-child(1) button")
    assert [name for name, _ in rows(tab)] == [f"run {n}" for n in range(60)]  # 2 before 10


@needs_chromium
def test_a_filter_leaves_the_rows_that_have_all_words(tab: Tab) -> None:
    tab.click("input[type=search]")
    tab.type(f"RUN {SIGNATURES[57]}")
    assert rows(tab) == [["run 57", f"{VALUES[57]:.4g}"]]


@needs_chromium
def test_a_chosen_row_is_highlighted_in_every_plot_and_escape_ends_it(tab: Tab) -> None:
    tab.click("tbody tr:nth-child(2) td")
    assert chosen(tab) == [SIGNATURES[1]]
    assert tab.value_of(f"{AREAS}[0].data[0].selectedpoints") == [1]
    assert "run 1" in tab.value_of("document.querySelector('.chosen-runs').textContent")
    opacities = f"{AREAS}[1].data.map(trace => trace.opacity ?? 1)"
    tab.wait_for(f"{AREAS}[1].data")
    assert tab.value_of(opacities) == [0.2, 1]
    tab.press("Escape")
    assert chosen(tab) == []
    assert tab.value_of(opacities) == [1, 1]
    assert tab.value_of(f"{AREAS}[0].data[0].selectedpoints ?? 'all'") == "all"


@needs_chromium
@pytest.mark.parametrize("number", [5, 55])
def test_a_click_on_a_dot_chooses_its_run_and_shows_its_row_even_beyond_the_50th(
    tab: Tab, number: int
) -> None:
    tab.click(f".area .points path:nth-of-type({number + 1})")
    assert chosen(tab) == [SIGNATURES[number]]
    assert f"run {number}" in [name for name, _ in rows(tab)]


@needs_chromium
def test_curves_have_a_log_axis_smoothing_and_a_legend_that_hides_runs(tab: Tab) -> None:
    tab.click(".keys input[type=checkbox]")
    tab.wait_for(f"{AREAS}[1].layout?.yaxis?.type == 'log'")
    slider = ".keys input[type=range]"
    tab.click(slider, x=0.7)
    weight = float(tab.value_of(f"document.querySelector('{slider}').value"))
    assert weight > 0.4
    tab.wait_for(f"{AREAS}[1].data[0].y[1] != {LOGS[0][1]}")
    for number, values in enumerate(LOGS):  # a weighted mean, the latest value with weight 1
        expected = []
        for end in range(len(values)):
            weights = [weight ** (end - place) for place in range(end + 1)]
            total = sum(w * v for w, v in zip(weights, values, strict=False))
            expected.append(total / sum(weights))
        assert tab.value_of(f"{AREAS}[1].data[{number}].y") == pytest.approx(expected)
    tab.click(".keys button")
    assert tab.value_of(f"{AREAS}[1].data.map(trace => trace.visible)") == [False, True]
    assert tab.value_of("document.querySelector('.keys button').ariaPressed") == "false"


@needs_chromium
def test_a_link_in_a_row_is_followed_and_chooses_nothing(tab: Tab) -> None:
    tab.value_of("addEventListener('click', event => event.preventDefault(), true)")
    tab.click("tbody tr:nth-child(2) a")
    assert chosen(tab) == []
