"""Tables of one line per row at any width: columns that do not fit are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table, with all its cells."""

    title: str
    cells: Sequence[str | Text]
    rank: int
    """Importance: 0 is left out last."""
    is_number: bool = False
    """Aligned to the right."""
    least: int | None = None
    """The fewest characters that a cell can be cut to; None: it is never cut."""

    @property
    def full(self) -> int:
        """The characters of the longest cell or the title."""
        return max(cell_len(str(cell)) for cell in (self.title, *self.cells))


def one_line_table(columns: Sequence[Column], width: int) -> Table:
    """Return a table of at most `width` characters. Empty columns are left out, then the least
    important ones, until the others fit; what is left of the width goes to those that can be cut.
    """
    filled = [one for one in columns if any(map(str, one.cells))]
    widths = _widths(filled, width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    shown = [one for one in filled if one.rank in widths]
    for one in shown:
        table.add_column(one.title, width=widths[one.rank], no_wrap=True, overflow="ellipsis",
                         justify="right" if one.is_number else "left")
    for cells in zip(*(one.cells for one in shown), strict=True):
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table


def _widths(columns: Sequence[Column], width: int) -> dict[int, int]:
    """Return the width of each column that is shown, by its rank."""
    widths: dict[int, int] = {}
    left = width + GAP
    important = sorted(columns, key=lambda one: one.rank)
    for one in important:
        least = one.full if one.least is None else min(one.least, one.full)
        if widths and least + GAP > left:
            break
        widths[one.rank] = min(least, width)
        left -= widths[one.rank] + GAP
    for one in important:
        if one.rank in widths:
            more = max(0, min(left, one.full - widths[one.rank]))
            widths[one.rank] += more
            left -= more
    return widths
