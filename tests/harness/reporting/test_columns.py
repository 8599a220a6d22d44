"""Tables that fit the width."""

import io
import re

from rich.console import Console

from harness.reporting.columns import Column, one_line_table


def lines(columns: list[Column], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(one_line_table(columns, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_least_important_columns_are_left_out_and_the_rest_is_cut_last() -> None:
    columns = [Column("name", ["a" * 20, "b"], 1, least=8), Column("n", ["1", "10"], 0,
               is_number=True), Column("note", ["[red]x", "y"], 2), Column("empty", ["", ""], 3)]
    assert lines(columns, 80) == [
        "name                   n  note", f"{'a' * 20}   1  [red]x", f"b{' ' * 19}  10  y"
    ]
    assert lines(columns, 23)[1] == f"{'a' * 10}…   1  [red]x"
    assert [re.split(" +", lines(columns, width)[0]) for width in (19, 12)] == [["name", "n"]] * 2
    assert lines(columns, 11)[1:] == [" 1", "10"]
