"""Every stage once, offline, on synthetic scans."""

from pathlib import Path

from rich.console import Console

from brats_seg import pipeline
from brats_seg.config import load_config
from brats_seg.errors import InputError, UsageError
from brats_seg.reporting.console import show_place, show_problems, show_scores, show_verification

N_CASES = 10
SIZE = 96


def run_demo(out: Path, *, console: Console) -> Path:
    """Phantom scans -> verify -> preprocess -> train -> predict the held-out cases -> evaluate -> report; gives the report's path.

    Raises:
        UsageError: a folder with something in it.
        InputError: a stage that found problems, which it does not on phantoms.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: not an empty folder; name a new one, such as {out}2")
    scans, bank, run, predictions = (out / name for name in ("scans", "bank", "run", "predictions"))
    _headline(console, 1, f"{N_CASES} phantom cases, {SIZE} voxels wide")
    pipeline.phantom(scans, n_cases=N_CASES, layout="brats2021", size=SIZE, seed=0)
    _headline(console, 2, "verify")
    verified = pipeline.verify_scans(scans)
    show_verification(verified.rows, verified.problems, console=console)
    _headline(console, 3, "preprocess")
    built = pipeline.preprocess(scans, bank, say=console.print)
    _require(built.exit_code)
    _headline(console, 4, "train (balanced sampling, one to two minutes on 2 cores)")
    result = pipeline.train(bank, run, load_config("demo"), fold=0)
    if result.ended == "stopped":
        raise InputError(f"{run}: training was stopped; for another try give an empty folder")
    console.print(f"best epoch {result.best_epoch} of {result.n_epochs}: inner-split score {result.best_score:.3f}")
    _headline(console, 5, "predict the held-out cases")
    predicted = pipeline.predict(run, scans, predictions, held_out=True)
    show_problems(predicted.problems, console=console)
    _require(predicted.exit_code)
    _headline(console, 6, "evaluate and report")
    held_out = pipeline.held_out_cases(run)
    scored = pipeline.evaluate(predictions, scans, only=held_out)
    page = pipeline.report(predictions, scans, output=out / "report.html", run=run, only=held_out).page
    show_scores(scored.summary, console=console)
    show_place("label maps:", predictions, console=console)
    show_place("report:    ", page.resolve(), console=console)
    return page


def _headline(console: Console, number: int, text: str) -> None:
    console.print(f"[bold]{number}/6[/] {text}")


def _require(exit_code: int) -> None:
    if exit_code:
        raise InputError("the demo stopped at a stage that must not fail on phantoms; please report the lines above")
