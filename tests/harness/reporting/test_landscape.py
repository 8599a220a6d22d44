"""A sweep's points as figures."""

from pathlib import Path
from xml.etree import ElementTree

from harness.reporting.drawing import as_svg
from harness.reporting.landscape import contour, parallel_coordinates
from harness.runs.run import Run
from harness.sweeps.dimensions import Dimension
from harness.sweeps.sweep_results import Outcome, SweepResults


def test_the_dots_of_a_map_are_whole_on_its_edge(tmp_path: Path) -> None:
    points = [{"a": a, "b": b} for a in (0.0, 0.8) for b in (0.0, 0.8)]
    outcomes = [
        Outcome(point, 1, Run(tmp_path / str(n)), "complete", n / 4, {})
        for n, point in enumerate(points)
    ]
    figure = contour(SweepResults("weights", tmp_path, "mAP", "max", outcomes), ["a", "b"])
    assert figure is not None
    root = ElementTree.fromstring(as_svg(figure))
    [dots] = [node for node in root.iter() if node.get("id", "").startswith("PathCollection")]
    assert sum(node.tag.endswith("}use") for node in dots.iter()) == len(points)
    assert all(node.get("clip-path") is None for node in dots.iter())


def test_axes_are_log_where_the_search_was_and_at_most_200_points_are_lines(tmp_path: Path) -> None:
    lines = [{"lr": 10.0 ** -(1 + n % 4), "weight": n / 100} for n in range(201)]
    outcomes = [Outcome(point, 1, Run(tmp_path / str(n)), "complete", n / 201, {})
                for n, point in enumerate(lines)]
    search = {"lr": Dimension("lr", "loguniform", (1e-4, 1e-1), ""),
              "weight": Dimension("weight", "uniform", (0.0, 2.0), "")}
    figure = parallel_coordinates(
        SweepResults("rates", tmp_path, "mAP", "max", outcomes, {}, search)
    )
    assert figure is not None
    drawn = [line.get_ydata() for line in figure.axes[0].lines if len(line.get_ydata()) == 3]
    assert len(drawn) == 200
    assert {round(float(line[0]), 3) for line in drawn} == {0.0, 0.333, 0.667, 1.0}
    assert list(drawn[-1]) == [1.0, 1.0, 1.0]  # the best, over the others
