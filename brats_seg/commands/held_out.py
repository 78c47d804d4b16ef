"""The cases that a run held out, for verbs that otherwise load no network."""

from pathlib import Path

from brats_seg.commands.console import loading


def held_out_cases(run: Path | None) -> tuple[str, ...] | None:
    """Ids of the cases that a run held out; None (all cases) where no run is given. Raises `InputError` where
    the run held out none.
    """
    if run is None:
        return None
    with loading():
        from brats_seg import pipeline
    return pipeline.held_out_cases(run)
