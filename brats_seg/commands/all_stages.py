"""Every stage once, offline, on synthetic scans."""

from pathlib import Path

from rich.console import Console

from brats_seg import pipeline
from brats_seg.commands.console import show_place, show_problems
from brats_seg.commands.show_runs import show_predictions
from brats_seg.commands.show_scans import show_verification
from brats_seg.commands.show_scores import show_scores
from brats_seg.core.config import load_config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.evaluation.folders import ScoreOptions, evaluate_folders
from brats_seg.inference.options import PredictOptions
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.reporting.predictions_page import write_predictions_page
from brats_seg.reporting.report import WrittenReport, write_report
from brats_seg.scans.layouts import find_cases

N_CASES = 10
SIZE = 96
STARTER = "starter"
"""The packaged network that segments the user's own scans."""


def run_demo(out: str | Path, *, console: Console) -> Path:
    """Phantom scans -> verify -> preprocess -> train -> predict the held-out cases -> evaluate -> report;
    returns the report's path.

    Raises:
        UsageError: a folder that is not empty.
        InputError: a stage that found problems (this should not happen with phantoms).
    """
    out = _empty(out)
    scans, bank, run, predictions = (out / name for name in ("scans", "bank", "run", "predictions"))
    _headline(console, 1, f"{N_CASES} phantom cases, {SIZE} voxels wide")
    write_cohort(scans, n_cases=N_CASES, layout="brats2021", size=SIZE, seed=0)
    _headline(console, 2, "verify")
    verified = pipeline.verify_scans(scans)
    show_verification(verified.rows, verified.problems, console=console)
    _headline(console, 3, "preprocess")
    _require(pipeline.preprocess(scans, bank, say=console.print).exit_code)
    _headline(console, 4, "train (balanced sampling, one to two minutes on 2 cores)")
    result = pipeline.train(bank, run, load_config("demo"), fold=0)
    if result.ended == "stopped":
        raise InputError(f"{run}: training was stopped; for another try give an empty folder")
    console.print(
        f"best epoch {result.best_epoch} of {result.n_epochs}: inner-split score {result.best_score:.3f}"
    )
    _headline(console, 5, "predict the held-out cases")
    predicted = pipeline.predict(run, scans, predictions, options=PredictOptions(held_out=True))
    show_problems(predicted.problems, console=console)
    _require(predicted.exit_code)
    _headline(console, 6, "evaluate and report")
    held_out = ScoreOptions(only=pipeline.held_out_cases(run))
    scored = evaluate_folders(predictions, scans, options=held_out, output=predictions)
    page = write_report(predictions, scans, output=out / "report.html", run=run, options=held_out).page
    show_scores(scored.summary, console=console)
    show_place("label maps:", predictions, console=console)
    show_place("report:    ", page.resolve(), console=console)
    return page


def run_real_demo(
    scans: str | Path, out: str | Path, *, console: Console, network: str = STARTER, device: str = "auto"
) -> WrittenReport:
    """Segment a folder of scans with a packaged network, score the cases with a reference, and write a page
    with every case.

    Returns:
        The page, and the exit code: 1 if a case was refused.

    Raises:
        UsageError: a folder that is not empty, or no packaged network of that name.
        InputError: no case could be segmented.
    """
    out = _empty(out)
    predictions = out / "predictions"
    predicted = pipeline.predict(network, scans, predictions, options=PredictOptions(device=device))
    show_predictions(predicted, predictions, console=console)
    if predicted.exit_code:
        console.print(
            f"for the options named above: brats-seg predict {network} {scans} OUT",
            soft_wrap=True,
            markup=False,
        )
    done = {prediction.case for prediction in predicted.predictions}
    cases = [case for case in find_cases(scans, required=(), labels="unused").cases if case.id in done]
    page = write_predictions_page(predictions, cases, output=out / "report.html")
    scored = ScoreOptions(only=tuple(case.id for case in cases if case.label is not None and case.schema))
    if scored.only:
        show_scores(
            evaluate_folders(predictions, scans, options=scored, output=predictions).summary, console=console
        )
        scores = write_report(predictions, scans, output=out / "scores.html", options=scored).page
        show_place("scores:    ", scores.resolve(), console=console)
    if n_untold := sum(case.label is not None and not case.schema for case in cases):
        what = f"{n_untold} references are not scored: the meaning of each value is unknown; to score them:"
        console.print(
            f"{what} brats-seg evaluate {predictions} {scans} --schema NAME", soft_wrap=True, markup=False
        )
    show_place("report:    ", page.resolve(), console=console)
    return WrittenReport(page, predicted.exit_code)


def _empty(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: not an empty folder; name a new one, such as {out}2")
    return out


def _headline(console: Console, number: int, text: str) -> None:
    console.print(f"[bold]{number}/6[/] {text}")


def _require(exit_code: int) -> None:
    if exit_code:
        raise InputError(
            "the demo stopped at a stage that must not fail on phantoms; please report the lines above"
        )
