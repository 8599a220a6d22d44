"""A sweep's points as figures."""

from pathlib import Path
from xml.etree import ElementTree

from harness.reporting.drawing import as_svg
from harness.reporting.landscape import contour
from harness.runs.run import Run
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
