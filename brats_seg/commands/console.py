"""How the verbs print: tables that fit the terminal, problems, paths, progress. Colors only in a terminal."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from brats_seg.core.progress import is_first_rank

if TYPE_CHECKING:  # it imports NumPy, which the help does not need
    from brats_seg.scans.case import Problem

_COLORS = {"error": "red", "warning": "yellow"}


def make_console() -> Console:
    """Standard output; wide if it is a file or a pipe, so that no line of a table is broken.

    Of several ranks started by `torchrun` only the first prints.
    """
    console = Console(highlight=False, quiet=not is_first_rank())
    return console if console.is_terminal else Console(highlight=False, width=160, quiet=console.quiet)


@contextmanager
def loading(what: str = "PyTorch and MONAI") -> Iterator[None]:
    """In a terminal, show a message while libraries are imported (PyTorch and MONAI: 5 s or more)."""
    console = Console(stderr=True)
    if not (console.is_terminal and is_first_rank()):
        yield
        return
    with console.status(f"loading {what}"):
        yield


def show_problems(problems: Iterable["Problem"], *, console: Console) -> None:
    """One line for each problem, errors first."""
    for problem in sorted(problems, key=lambda p: p.severity):
        style = _COLORS[problem.severity]
        console.print(f"[{style}]{problem.severity}[/] {escape(str(problem))}", soft_wrap=True)


def show_place(label: str, path: Path, *, console: Console) -> None:
    """The path of a result; never broken over two lines."""
    console.print(f"{label} {escape(str(path))}", soft_wrap=True)


def show_advice(lines: Iterable[str], page: Path, *, console: Console) -> None:
    """What to use, how certain this is, the command of the full run, and the path of the page."""
    for line in lines:
        console.print(escape(line), soft_wrap=True)
    show_place("page:", page, console=console)


def make_table(*columns: str, n_text: int = 1) -> Table:
    """A table without lines: `n_text` columns of text, then columns of numbers. In a narrow terminal the text
    is broken, but never the numbers.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        is_text = number < n_text
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table


def show_first_that_fits(*tables: Table, console: Console) -> None:
    """Print the first table that fits the terminal, or else the last one. A table without rows is not
    printed. The head of a column is broken between words if its cells are narrower.
    """
    for table in tables:
        for column in table.columns:
            column.header = fill(str(column.header), max([1, *_widths(column)[1:]]), **_BETWEEN_WORDS)
    table = next((one for one in tables if _width(one) <= console.width), tables[-1])
    if table.row_count:
        console.print(table)


def show_markdown(text: str, *, console: Console) -> None:
    """Print Markdown; if the terminal is narrower than a table, print each row of the table as a separate
    block.
    """
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not console.is_terminal or max(map(len, text.splitlines())) <= console.width:
            console.print(line, markup=False, soft_wrap=True)
        elif not cells:
            head = []
            console.print(line, markup=False)
        elif not head:
            head = cells
        elif set("".join(cells)) != {"-"}:
            named = "; ".join(f"{name} {cell}" for name, cell in zip(head, cells, strict=True) if cell)
            console.print(fill(named, console.width, subsequent_indent="  ", **_BETWEEN_WORDS), markup=False)


_BETWEEN_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def _widths(column: Column) -> list[int]:
    """Number of letters of the longest line of the head and of each cell."""
    return [max(map(len, str(text).split("\n"))) for text in (column.header, *column.cells)]


def _width(table: Table) -> int:
    """Width in letters that a table needs so that no cell is broken."""
    return sum(max(_widths(column)) + 2 for column in table.columns) - 2


def tissue_head(tissue: str) -> str:
    """A class as the head of a column, in words that can be broken over lines."""
    return tissue.replace("non_enhancing", "non-enh.").replace("_", " ")
