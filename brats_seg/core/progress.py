"""A progress bar with time left for long work; silent where nobody watches."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def progress_bar() -> Progress:
    """A bar on standard error with count, time spent and time left; it draws nothing when that is not a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """Yield the items while a bar counts them."""
    with progress_bar() as bar:
        task = bar.add_task(label, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)
