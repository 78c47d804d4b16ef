"""Rows as text: CSV and Markdown tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

Row = Mapping[str, Any]


def csv_text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV with a header line. A value that is None, NaN or missing is an empty cell.

    Args:
        rows: any number of rows; values are written with `str`.
        columns: columns in order; None for the columns of the rows.
    """
    # As objects, because otherwise a whole number in a column with an empty cell would be written as 1.0.
    table = pd.DataFrame(list(rows), columns=None if columns is None else list(columns), dtype=object)
    return str(table.to_csv(index=False, lineterminator="\n"))


def markdown_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table; every row is as long as `head`."""
    return [f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *rows)]


def interval_text(row: Row, *, digits: int, sign: str = "") -> str:
    """The 95 % interval of a mean in brackets, with a space before it; "" if there is no interval."""
    ends = row["interval95"]
    return "" if ends is None else f" [{', '.join(f'{end:{sign}.{digits}f}' for end in ends)}]"
