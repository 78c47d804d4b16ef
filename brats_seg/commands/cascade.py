"""The verb `cascade`."""

from pathlib import Path
from typing import Annotated

import typer

from brats_seg.commands.console import loading


def cascade(
    detector: Annotated[
        Path,
        typer.Argument(
            help="Run trained with --set task.classes=healthy_or_tumor.", exists=True, file_okay=False
        ),
    ],
    classifier: Annotated[
        Path, typer.Argument(help="Run trained with --set task.classes=tumor.", exists=True, file_okay=False)
    ],
    run: Annotated[Path, typer.Argument(help="Run folder to write.")],
) -> None:
    """Combine two trained networks: the first finds tumor, the second finds its tissue class. The result is
    used like any run.
    """

    with loading():
        from brats_seg import pipeline

    typer.echo(pipeline.compose(detector, classifier, run))
