"""A progress bar with time left for long work; silent where nobody watches."""

import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import parent_process
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

T = TypeVar("T")


class _OutermostBar(Progress):
    """Bars in one another would write over each other: the outermost one draws, and it draws in the main
    process alone.
    """

    _n_open = 0

    def start(self) -> None:
        """Draw, unless another bar does."""
        self.disable = self.disable or _OutermostBar._n_open > 0 or parent_process() is not None
        _OutermostBar._n_open += 1
        super().start()

    def stop(self) -> None:
        """Stop drawing."""
        _OutermostBar._n_open -= 1
        super().stop()


def is_first_rank() -> bool:
    """Whether this process is the first of those that `torchrun` started, or the only one: it alone
    speaks.
    """
    return int(os.environ.get("RANK", "0")) == 0


class _NoteColumn(ProgressColumn):
    """The note of a task, on one line."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


def progress_bar() -> Progress:
    """A bar on standard error with count, time spent and time left.

    It draws nothing when that is not a terminal, inside another bar, or in a rank that is not the first.
    """
    console = Console(stderr=True)
    kept = [Column(no_wrap=True) for _ in range(5)]  # whole in a narrow terminal: the note is cut instead
    return _OutermostBar(
        TextColumn("{task.description}", table_column=kept[0]),
        BarColumn(bar_width=20, table_column=kept[1]),
        MofNCompleteColumn(table_column=kept[2]),
        TimeElapsedColumn(table_column=kept[3]),
        TimeRemainingColumn(table_column=kept[4]),
        _NoteColumn(),
        console=console,
        disable=not (console.is_terminal and is_first_rank()),
    )


def log_line(bar: Progress, line: str) -> None:
    """Print a line where standard error is no terminal: the log of hours of work says how far it is.

    Work inside other work (a bar in a bar, or in a worker process) is not logged: the outer one is.
    """
    is_outermost = _OutermostBar._n_open <= 1 and parent_process() is None
    if is_outermost and not bar.console.is_terminal:
        bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def track(
    items: Iterable[T], *, total: int, label: str, line: Callable[[T], str] | None = None
) -> Iterator[T]:
    """Yield the items while a bar counts them; with `line`, each of them has a line where standard error is
    no terminal.
    """
    with progress_bar() as bar:
        task = bar.add_task(label, total=total, note="")
        for number, item in enumerate(items, start=1):
            if line is not None:
                log_line(bar, f"{label} {number}/{total}: {line(item)}")
            yield item
            bar.advance(task)
