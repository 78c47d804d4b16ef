"""The cases that a run held out, for verbs that load no network."""

from pathlib import Path

from brats_seg.commands.console import loading


def held_out_cases(run: Path | None) -> tuple[str, ...] | None:
    """Ids of the cases that a run held out; None (all cases) without a run. Raises `InputError` if the run
    held out no case.
    """
    if run is None:
        return None
    with loading():
        from brats_seg import pipeline
    return pipeline.held_out_cases(run)
