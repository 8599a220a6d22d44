"""Every row of `make bench` that a GPU computes, in bf16, against the released way."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from tests.benchmarks import data, features, stage1, stage2
from tests.benchmarks.timing import Row
from tests.gpu.checks import Extent, Finding

SLOWER = 1.05
"""How much longer than the released way a row may take: its times vary."""


def steps_of_stage_2(extent: Extent) -> Iterator[Finding]:
    """Steps; steps from files; steps that compute blocks again, against those that keep them."""
    yield from _findings(stage2.measure(extent.sizes), extent)


def steps_of_stage_1(extent: Extent) -> Iterator[Finding]:
    """Steps of a small batch, and of the method's."""
    yield from _findings(stage1.measure(extent.sizes), extent)


def feature_extraction(extent: Extent) -> Iterator[Finding]:
    """Features by a large model and by the tiny one."""
    yield from _findings(features.measure(extent.sizes), extent)


def views_of_files(extent: Extent) -> Iterator[Finding]:
    """Views of small and of large files."""
    yield from _findings(data.measure(extent.sizes), extent)


def _findings(rows: Iterable[Row], extent: Extent) -> Iterator[Finding]:
    for row in rows:
        must_be_faster = extent.is_timed and not row.name.startswith(stage2.SWITCH)
        yield finding_of(row, must_be_faster=must_be_faster)


def finding_of(row: Row, *, must_be_faster: bool) -> Finding:
    """Return a benchmark's row as a finding, which fails if it is slower than its baseline."""
    is_slow = must_be_faster and row.baseline is not None and row.ours > SLOWER * row.baseline
    return Finding(
        row.name, not is_slow, "; ".join(filter(None, (f"{row.ours:.3g} {row.unit}", row.note))),
        f"slower than the released way, which takes {row.baseline:.3g}" if is_slow else "",
        asdict(row) | {"ratio": row.baseline and row.baseline / row.ours},
    )


CHECKS = {"bench": (steps_of_stage_2, steps_of_stage_1, feature_extraction, views_of_files)}
