"""A progress bar with the remaining time. It is silent if standard error is not a terminal."""

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
    """Nested bars would overwrite each other. Therefore only the outermost bar draws, and only in the main
    process.
    """

    _n_open = 0

    def start(self) -> None:
        """Start to draw, unless another bar draws."""
        self.disable = self.disable or _OutermostBar._n_open > 0 or parent_process() is not None
        _OutermostBar._n_open += 1
        super().start()

    def stop(self) -> None:
        """Stop drawing."""
        _OutermostBar._n_open -= 1
        super().stop()


def is_first_rank() -> bool:
    """Whether this process is the first process that `torchrun` started, or the only process. Only this
    process prints.
    """
    return int(os.environ.get("RANK", "0")) == 0


class _NoteColumn(ProgressColumn):
    """The note of a task in one line."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


def progress_bar() -> Progress:
    """A bar on standard error with the count, the elapsed time and the remaining time.

    It draws nothing if standard error is not a terminal, inside another bar, or in a rank other than the
    first.
    """
    console = Console(stderr=True)
    kept = [
        Column(no_wrap=True) for _ in range(5)
    ]  # complete in a narrow terminal, where the note is cut instead
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
    """Print a line if standard error is not a terminal, so that the log of long work shows its progress.

    Nested work (a bar inside a bar, or in a worker process) is not logged; the outer work is.
    """
    is_outermost = _OutermostBar._n_open <= 1 and parent_process() is None
    if is_outermost and not bar.console.is_terminal:
        bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def track(
    items: Iterable[T], *, total: int, label: str, line: Callable[[T], str] | None = None
) -> Iterator[T]:
    """Yield the items while a bar counts them. With `line`, one line for each item is printed if standard
    error is not a terminal.
    """
    with progress_bar() as bar:
        task = bar.add_task(label, total=total, note="")
        for number, item in enumerate(items, start=1):
            if line is not None:
                log_line(bar, f"{label} {number}/{total}: {line(item)}")
            yield item
            bar.advance(task)
