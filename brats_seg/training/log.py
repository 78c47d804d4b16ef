"""The tables, curves and progress bar of a run."""

import importlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from brats_seg.bank.bank import PatchBank
from brats_seg.core.errors import UsageError
from brats_seg.core.files import write_json, write_text
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Counts, Ids
from brats_seg.core.tables import csv_text
from brats_seg.models.checkpoint import library_versions
from brats_seg.reporting.progress import draw_progress
from brats_seg.scans.labels import REGIONS

Row = Mapping[str, Any]
DRAWING_SHARE = 0.05
"""Largest share of the time of a run for drawing the curves. The curves are always drawn after the last
epoch.
"""


class Stopwatch:
    """The seconds of an epoch by activity. The seconds of training include sampling and augmentation."""

    PARTS = ("training_s", "sampling_s", "augmentation_s", "mining_s", "validation_s", "checkpoint_s")

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(self.PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time of the block to an activity."""
        started = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - started

    def state_dict(self) -> dict[str, float]:
        """Seconds of the open epoch, as plain types."""
        return dict(self._seconds)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Load the open epoch of a run that is resumed."""
        self._seconds |= state

    def row(self, epoch: int, *, n_patches: int) -> dict[str, Any]:
        """Return the row of `timing.csv`, and reset the stopwatch to 0."""
        row: dict[str, Any] = {
            "epoch": epoch,
            **{part: round(seconds, 4) for part, seconds in self._seconds.items()},
        }
        row["patches_per_s"] = round(n_patches / max(1e-9, self._seconds["training_s"]), 2)
        row["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._seconds = dict.fromkeys(self.PARTS, 0.0)
        return row


class RunLog:
    """The tables of a run. Their rows are kept in memory and in the checkpoint, and the files are written
    again after each epoch.

    `epochs.csv` and the ledgers contain no times, so a resumed run writes the same bytes as a run that was
    never stopped.
    """

    def __init__(self, run_dir: Path, *, classes: Sequence[str], tensorboard: bool = False) -> None:
        """Raises `UsageError` if `tensorboard` is asked for but its package is not installed."""
        self.epochs: list[dict[str, Any]] = []
        self.ledger: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self._run_dir = run_dir
        self._classes = tuple(classes)
        self._begun: set[Path] = set()
        self._drawn_at = -float("inf")
        self._drawing_s = 0.0
        self._board = _open_board(run_dir / "tensorboard") if tensorboard else None

    def state_dict(self) -> dict[str, Any]:
        """The rows, as plain types."""
        return {"epochs": self.epochs, "ledger": self.ledger, "timing": self.timing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the rows of a run that is resumed."""
        self.epochs, self.ledger, self.timing = (list(state[name]) for name in ("epochs", "ledger", "timing"))

    def append(self, name: str, rows: Sequence[Row]) -> None:
        """Append the rows of an epoch (their first column) to a table that is too long for memory and
        checkpoints.

        At the first call, lines of this epoch and of later epochs are deleted, because a run that is resumed
        from an older checkpoint draws these epochs again. A line that does not start with an epoch is deleted
        too.
        """
        path = self._run_dir / f"{name}.csv"
        header, _, lines = table_text(rows).partition("\n")
        if path not in self._begun:
            before = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if path.exists() else []
            epochs = [line.partition(",")[0] if line.endswith("\n") else "" for line in before]
            kept = [
                line
                for line, epoch in zip(before, epochs, strict=True)
                if epoch.isdecimal() and int(epoch) < rows[0]["epoch"]
            ]
            write_text(path, "".join([header, "\n", *kept]))
            self._begun.add(path)
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def write(self, *, is_last: bool) -> None:
        """Write the three tables and `train.log`. Also write `progress.png` if enough time has passed since
        the last drawing.
        """
        for name, rows in (("epochs", self.epochs), ("ledger", self.ledger), ("timing", self.timing)):
            write_text(self._run_dir / f"{name}.csv", table_text(rows))
        lines = [f"{seconds['finished']} {self.line(at)}\n" for at, seconds in enumerate(self.timing)]
        write_text(self._run_dir / "train.log", "".join(lines))
        if self._board is not None and self.epochs:
            _show_on_board(self._board, self.epochs[-1])
        started = time.monotonic()
        if is_last or started - self._drawn_at > self._drawing_s / DRAWING_SHARE:
            draw_progress(
                self._run_dir / "progress.png", epochs=self.epochs, ledger=self.ledger, classes=self._classes
            )
            self._drawn_at = time.monotonic()
            self._drawing_s = self._drawn_at - started

    def line(self, at: int = -1) -> str:
        """An epoch in one line: loss, scores on the inner cases, seconds."""
        row, seconds = self.epochs[at], self.timing[at]
        dice = {region: row[f"dice_{region}"] for region in REGIONS}
        scored = [f"{r} {value:.3f}" for r, value in dice.items() if value is not None and value == value]
        said = [f"epoch {row['epoch']}: loss {row['loss']:.4f}"]
        said += [f"inner Dice {' '.join(scored)}"] if scored else []
        said += ["best so far"] if row["is_best"] else []
        spent = sum(seconds[f"{part}_s"] for part in ("training", "mining", "validation", "checkpoint"))
        return ", ".join([*said, f"{spent:.1f} s"])


def _open_board(folder: Path) -> Any:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise UsageError(
            "training.tensorboard: needs a package that is not installed: pip install "
            "'brats-seg[tensorboard]'"
        ) from None
    return module.SummaryWriter(str(folder))


def _show_on_board(board: Any, row: Row) -> None:
    for name, value in row.items():
        if name != "epoch" and value is not None:
            board.add_scalar(name, value, row["epoch"])
    board.flush()


def table_text(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header line. Numbers have up to 8 digits. None and NaN are empty fields."""
    if not rows:
        return ""
    return csv_text([{name: _field(value) for name, value in row.items()} for row in rows])


def write_environment(
    path: Path, *, runtime: Runtime, command: Sequence[str], n_parameters: int, bank: str, initial: str = ""
) -> None:
    """Write the environment of a run: machine, libraries, precision, command line, and the SHA-256 of the
    initial checkpoint, if there is one.
    """
    write_json(
        path,
        {
            "command": list(command),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": library_versions(),
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "processor": processor_model(),
            "n_cores": os.cpu_count(),
            "device": str(runtime.device),
            "precision": precision_name(runtime),
            "compile": runtime.compile,
            "cudnn_benchmark": runtime.cudnn_benchmark,
            "n_threads": runtime.n_threads,
            "n_ranks": runtime.world_size,
            "n_parameters": n_parameters,
            "bank": bank,
            "initial": initial,
        },
    )


def processor_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the CPU if the system names it, else its architecture. CPU models round differently, so the
    same run can give different results.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [
        value.strip()
        for line in lines
        for name, _, value in [line.partition(":")]
        if name.strip() == "model name"
    ]
    return next(iter(models), "") or platform.processor() or platform.machine()


def write_bad_batch(path: Path, *, bank: PatchBank, ids: Ids, step: int, loss: float) -> list[str]:
    """Write the center voxels of the patches of a batch. Return the names of their cases."""
    places = bank.locate(ids)
    names = [bank.cases[case].id for case in places[:, 0]]
    voxels = [
        {"case": name, "id": int(i), "zyx": place[1:].tolist()}
        for name, i, place in zip(names, ids, places, strict=True)
    ]
    write_json(path, {"step": step, "loss": str(loss), "voxels": voxels})
    return sorted(set(names))


def progress_note(epoch: int, *, n_drawn: Counts, loss: float | None) -> str:
    """The text of the progress bar: the epoch, the share of each class in its draws until now in percent, and
    its mean loss until now.
    """
    mix = "/".join(f"{100 * n / max(1, n_drawn.sum()):.0f}" for n in n_drawn)
    return f"epoch {epoch}  mix {mix} %" + (f"  loss {loss:.3f}" if loss is not None else "")


def precision_name(runtime: Runtime) -> str:
    """ "float32", "tf32", "bf16" or "fp16"."""
    return {None: "tf32" if runtime.tf32 else "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}[
        runtime.dtype_autocast
    ]


def _field(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)
