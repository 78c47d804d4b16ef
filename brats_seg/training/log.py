"""Step and epoch numbers -> CSV, curves, progress bar."""

import csv
import importlib
import io
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from brats_seg.bank.bank import PatchBank
from brats_seg.core.files import atomic, write_json, write_text
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Counts, Ids
from brats_seg.errors import UsageError
from brats_seg.scans.labels import REGIONS
from brats_seg.training.checkpoint import library_versions

Row = Mapping[str, Any]
DRAWING_SHARE = 0.05
"""Drawing the curves may take this share of a run's time; the last epoch is always drawn."""
_LINES = ("#2f6db3", "#e07b39", "#3f9d5a")
_AREAS = ("#d7dbe0", "#8c6bb1", "#3f9d5a", "#2f6db3", "#e04f39", "#b08d57")
_BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False}


class Stopwatch:
    """Seconds of an epoch by what they were spent on; those of sampling and augmentation are part of those of
    training.
    """

    PARTS = ("training_s", "sampling_s", "augmentation_s", "mining_s", "validation_s", "checkpoint_s")

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(self.PARTS, 0.0)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time of the block to a part."""
        started = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - started

    def row(self, epoch: int, *, n_patches: int) -> dict[str, Any]:
        """The row of `timing.csv`; the watch is set back to 0."""
        row: dict[str, Any] = {
            "epoch": epoch,
            **{part: round(seconds, 4) for part, seconds in self._seconds.items()},
        }
        row["patches_per_s"] = round(n_patches / max(1e-9, self._seconds["training_s"]), 2)
        row["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._seconds = dict.fromkeys(self.PARTS, 0.0)
        return row


class RunLog:
    """The tables of a run: rows by epoch, kept whole in memory and in the checkpoint, written anew after each
    epoch.

    `epochs.csv` and the ledgers hold no clock time, so that a resumed run writes the same bytes as one that
    was never stopped.
    """

    def __init__(self, run_dir: Path, *, classes: Sequence[str], tensorboard: bool = False) -> None:
        """Raises `UsageError` for `tensorboard` without the package of that name."""
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
        """Take up the rows of a run to go on with."""
        self.epochs, self.ledger, self.timing = (list(state[name]) for name in ("epochs", "ledger", "timing"))

    def append(self, name: str, rows: Sequence[Row]) -> None:
        """Add the rows of an epoch (their first column) to a table that is too long to be kept in memory and
        in checkpoints.

        The first time, lines of this epoch and of later ones are cut off: a run that goes on from an older
        checkpoint draws them again. A line that does not begin with an epoch is cut off too.
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
        """Write the three tables, and `progress.png` where enough time has passed since it was last drawn."""
        for name, rows in (("epochs", self.epochs), ("ledger", self.ledger), ("timing", self.timing)):
            write_text(self._run_dir / f"{name}.csv", table_text(rows))
        if self._board is not None and self.epochs:
            _show_on_board(self._board, self.epochs[-1])
        started = time.monotonic()
        if is_last or started - self._drawn_at > self._drawing_s / DRAWING_SHARE:
            draw_progress(
                self._run_dir / "progress.png", epochs=self.epochs, ledger=self.ledger, classes=self._classes
            )
            self._drawn_at = time.monotonic()
            self._drawing_s = self._drawn_at - started


def _open_board(folder: Path) -> Any:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        raise UsageError(
            "training.tensorboard: needs a package that is not there: pip install 'brats-seg[tensorboard]'"
        ) from None
    return module.SummaryWriter(str(folder))


def _show_on_board(board: Any, row: Row) -> None:
    """The numbers of an epoch, each as a curve."""
    for name, value in row.items():
        if name != "epoch" and value is not None:
            board.add_scalar(name, value, row["epoch"])
    board.flush()


def table_text(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header line; numbers with up to 8 digits, None and NaN as an empty field."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([[_field(value) for value in row.values()] for row in rows])
    return text.getvalue()


def write_environment(
    path: Path, *, runtime: Runtime, command: Sequence[str], n_parameters: int, bank: str, initial: str = ""
) -> None:
    """Write what the run stood on: machine, libraries, precision, command line, and the SHA-256 of the
    checkpoint it began with, if any.
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
            "n_threads": runtime.n_threads,
            "n_ranks": runtime.world_size,
            "n_parameters": n_parameters,
            "bank": bank,
            "initial": initial,
        },
    )


def processor_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the CPU where the system names it, else its architecture. Models round products differently:
    the same run ends elsewhere.
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
    """Write which voxels the patches of a batch lay around, and give the names of their cases."""
    places = bank.locate(ids)
    names = [bank.cases[case].id for case in places[:, 0]]
    voxels = [
        {"case": name, "id": int(i), "zyx": place[1:].tolist()}
        for name, i, place in zip(names, ids, places, strict=True)
    ]
    write_json(path, {"step": step, "loss": str(loss), "voxels": voxels})
    return sorted(set(names))


def progress_note(epoch: int, *, n_drawn: Counts, loss: float | None) -> str:
    """What the progress bar says: the epoch, its draws of each class so far in percent, and its mean loss so
    far.
    """
    mix = "/".join(f"{100 * n / max(1, n_drawn.sum()):.0f}" for n in n_drawn)
    return f"epoch {epoch}  mix {mix} %" + (f"  loss {loss:.3f}" if loss is not None else "")


def precision_name(runtime: Runtime) -> str:
    """ "float32", "bf16" or "fp16"."""
    return {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}[runtime.dtype_autocast]


def draw_progress(
    path: Path, *, epochs: Sequence[Row], ledger: Sequence[Row], classes: Sequence[str]
) -> None:
    """Draw loss, inner Dice, and the class mix of patch centers and of patch voxels inside the brain, over
    the epochs.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    x = [row["epoch"] for row in epochs]
    _draw_loss(axes[0, 0], x, epochs)
    _draw_dice(axes[0, 1], epochs)
    for place, part, title in zip(
        axes[1],
        ("center", "voxel"),
        ("Patch centers", "Voxels of the patches, inside the brain"),
        strict=True,
    ):
        _draw_mix(
            place,
            x,
            [[row[f"{part}_share"] for row in ledger if row["class"] == name] for name in classes],
            classes,
        )
        place.set_title(title)
        place.set_xlabel("epoch")
    axes[0, 1].legend(**_BESIDE)
    handles, labels = axes[1, 1].get_legend_handles_labels()
    axes[1, 1].legend(handles[::-1], labels[::-1], **_BESIDE)
    for place in axes.flat:
        place.spines[["top", "right"]].set_visible(False)
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.set_xlim(1, max(2, len(x)))
    with atomic(path) as part_path:
        figure.savefig(part_path, format="png", dpi=110)


def _draw_loss(axes: Axes, x: Sequence[int], epochs: Sequence[Row]) -> None:
    axes.set_title("Training loss")
    axes.plot(x, [row["loss"] for row in epochs], color=_LINES[0], marker=".")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _draw_dice(axes: Axes, epochs: Sequence[Row]) -> None:
    axes.set_title("Dice on the inner cases")
    scored = [row for row in epochs if row["score"] is not None]
    for region, color in zip(REGIONS, _LINES, strict=True):
        axes.plot(
            [row["epoch"] for row in scored],
            [row[f"dice_{region}"] for row in scored],
            color=color,
            marker=".",
            label=region,
        )
    best = [row["epoch"] for row in epochs if row["is_best"]]
    if best:
        axes.axvline(best[-1], color="gray", linestyle="--", linewidth=1, label=f"best: epoch {best[-1]}")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)


def _draw_mix(
    axes: Axes, x: Sequence[int], shares: Sequence[Sequence[float]], classes: Sequence[str]
) -> None:
    """Stack the classes' shares; a single epoch is drawn as wide as two."""
    wide = [*x, x[-1] + 1] if len(x) == 1 else x
    stacked = [[*values, values[-1]] if len(x) == 1 else values for values in shares]
    axes.stackplot(wide, stacked, colors=_AREAS, labels=[name.replace("_", " ") for name in classes])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(0, 1)


def _field(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)
