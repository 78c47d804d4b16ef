"""One run of an experiment: train a strategy on a fold with a seed, segment and score the cases -> the
rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pandas as pd

from brats_seg import pipeline
from brats_seg.bank.bank import PatchBank
from brats_seg.core.config import Config
from brats_seg.core.errors import InputError
from brats_seg.core.files import BEST, atomic, read_table, write_json
from brats_seg.core.local_engine import worker_number
from brats_seg.core.runtime import Runtime, start_runtime, worker_device
from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.run_rows import COLUMNS, DIGEST, LOOK_COLUMNS, Row, write_rows
from brats_seg.evaluation.scores import score_volume
from brats_seg.inference.dense import label_maps as segment_once
from brats_seg.inference.loaded import load_segmenters
from brats_seg.models.trained import open_run
from brats_seg.studies.grid import Job, digest_of
from brats_seg.studies.strategies import TUNED, Strategy, look_epochs
from brats_seg.training.log import precision_name
from brats_seg.training.run import look_folder
from brats_seg.training.split import Split, make_split

SCHEMA = 2
"""The version of the digest of a run. Digests of schema 1 contain only the knobs that differ from their
defaults, digests of schema 2 every knob.
"""
TRAINED = "trained.json"
"""A file in the folder of a run: the data and the settings with which the run was trained."""


@dataclass(frozen=True, kw_only=True)
class RunJob(Job):
    """Everything that determines the rows of a run.

    Attributes:
        data: name of the cohort; "" if the experiment has only one bank.
        bank: digest of the bank.
        strategy: name of the strategy.
        configs: every knob with the seed: one config for a run, two for the stages of a cascade. Knobs with
            their default values count too: if a default changes, the job is a new job.
        correct_priors: strengths of prior correction for the prediction.
        cases: which cases are scored.
        fold: the fold that is held out.
        seed: seed of the training.
        looks: how often the run is scored, including its end; 0 scores only the end.
    """

    data: str
    bank: str
    strategy: str
    configs: tuple[Config, ...]
    correct_priors: tuple[str, ...]
    cases: Literal["held_out", "inner"]
    fold: int
    seed: int
    looks: int = 0

    @property
    def names(self) -> dict[str, Any]:
        """The columns of a row that name the run."""
        return {name: getattr(self, name) for name in ("data", "strategy", "fold", "seed", "cases")}

    @property
    def key(self) -> str:
        """The name of the job for people."""
        parts = (self.data, self.strategy, f"fold{self.fold}", f"seed{self.seed}")
        return "/".join(part for part in parts if part)

    @property
    def trees(self) -> list[dict[str, Any]]:
        """The configs as plain values."""
        return [config.model_dump(mode="json") for config in self.configs]

    def tree(self) -> dict[str, Any]:
        """Everything that determines the rows. Runs without looks keep the digest of earlier versions, which
        had no looks.
        """
        tree = {"schema": SCHEMA, "bank": self.bank, **self.names, "configs": self.trees}
        tree["correct_priors"] = list(self.correct_priors)
        return tree | ({"looks": self.looks} if self.looks else {})

    def training(self) -> dict[str, Any]:
        """The part of the job that determines the training and the kept weights. The strengths of prior
        correction are not in it.
        """
        tree = self.tree()
        return {name: tree[name] for name in ("bank", "configs", "fold", "seed", "looks") if name in tree}

    def split(self, bank: PatchBank) -> Split:
        """The cases of the bank: for training, for validation, and held out."""
        return make_split(bank, fold=self.fold, validation=self.configs[0].validation, seed=self.seed)

    def scored(self, split: Split) -> tuple[str, ...]:
        """The cases that are scored."""
        return split.held_out if self.cases == "held_out" else split.inner


def make_job(
    strategy: Strategy, *, data: str, bank: str, fold: int, seed: int, cases: Any, looks: int = 0
) -> RunJob:
    """The job of a strategy on a fold with a seed."""
    configs = tuple(
        one.model_copy(update={"training": one.training.model_copy(update={"seed": seed})})
        for one in strategy.configs
    )
    return RunJob(
        data=data, bank=bank, strategy=strategy.name, configs=configs,
        correct_priors=strategy.correct_priors, cases=cases, fold=fold, seed=seed, looks=looks,
    )  # fmt: skip


def run_cell(
    job: RunJob, *, banks: Mapping[str, str | Path], out: str | Path, device: str
) -> list[dict[str, Any]]:
    """Train a strategy on one fold with one seed, or resume the training. Segment and score the cases. Return
    the rows of `COLUMNS`.

    Raises:
        KeyboardInterrupt: a signal stopped the training. The training is saved.
    """
    bank, device = Path(banks[job.data]), worker_device(device, worker=worker_number())
    run, configs = run_folder(out, job.names), job.configs
    opened = pipeline.open_bank(bank, configs[0])
    if opened.digest != job.bank:
        raise InputError(f"{bank}: has changed since the experiment started; start again in a new folder")
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / TRAINED, job.training())
    folders = [run] if len(configs) == 1 else [run / "detector", run / "classifier"]
    epochs = look_epochs(configs[0].training.epochs, job.looks) if job.looks else ()
    for config, folder in zip(configs, folders, strict=True):
        result = pipeline.train(
            bank, folder, config, fold=job.fold, resume=True, looks=epochs[:-1], device=device
        )
        if result.ended == "stopped":
            raise KeyboardInterrupt
    if len(folders) == 2 and not (run / BEST).exists():
        pipeline.compose(folders[0], folders[1], run)
    runtime = start_runtime(device=device, threads=1)
    common = {
        **dict.fromkeys(COLUMNS),
        **job.names,
        "patches": sum(c.n_epochs * c.training.steps * c.training.batch_size for c in configs),
        "seconds": sum(_seconds(folder) for folder in folders),
        "config": digest_of({"configs": job.trees})[:DIGEST],
        "bank": job.bank[:DIGEST],
        "versions": f"brats-seg {version('brats-seg')}, torch {version('torch')}, numpy {version('numpy')}, "
        f"{runtime.device.type} {precision_name(runtime)}",
        "cell": job.digest[:DIGEST],
    }
    mix = _ledger_means(folders[0], classes=opened.classes)
    scored_bank = opened.select(job.scored(job.split(opened)))

    def score(folder: Path) -> list[Row]:
        return [common | row for row in _score(folder, bank, scored_bank, job=job, runtime=runtime)]

    rows = score(run)
    if epochs:
        looks = [score(look_folder(run, epoch)) for epoch in epochs[:-1]]
        times = _training_seconds(run)
        a_epoch = configs[0].training.steps * configs[0].training.batch_size
        marked = [
            {name: row[name] for name in LOOK_COLUMNS if name in row}
            | {"epoch": epoch, "patches": epoch * a_epoch, "training_s": times[epoch]}
            for epoch, of_one in zip(epochs, [*looks, rows], strict=True)
            for row in of_one
        ]
        write_rows(looks_file(out, job), marked, columns=LOOK_COLUMNS)
    return [row | mix.get(row["region"], {}) for row in rows]


def _score(run: Path, path: Path, bank: PatchBank, *, job: RunJob, runtime: Runtime) -> list[Row]:
    """Segment and score the cases of a job with the weights in a folder. The rows are ordered by strength of
    prior correction.
    """
    files = {strength: run / _label_file(job.cases, strength) for strength in job.correct_priors}
    rows: dict[str, list[Row]] = {strength: [] for strength in files}
    numbers = {case.id: number for number, case in enumerate(bank.cases)}
    for strength, case, labels in _segment(run, path, bank, files=files, runtime=runtime):
        entry = bank.cases[numbers[case]]
        scored = score_volume(
            bank.volume(numbers[case])[1],
            labels,
            case=case,
            patient=entry.patient,
            classes=bank.classes,
            spacing_mm=entry.spacing_mm,
        )
        rows[strength] += [{"correct_priors": strength, **row} for row in scored]
    return [row for of_one in rows.values() for row in of_one]


def run_folder(out: str | Path, run: Mapping[str, Any]) -> Path:
    """The folder of the run of a job or of a row."""
    return Path(out) / "runs" / run["data"] / run["strategy"] / f"fold{run['fold']}" / f"seed{run['seed']}"


def label_maps(out: str | Path, row: Mapping[str, Any]) -> Path:
    """The file of the label maps that a row scores."""
    return run_folder(out, row) / _label_file(row["cases"], row["correct_priors"])


def looks_file(out: str | Path, job: RunJob) -> Path:
    """The file with the rows of one run for looks.csv."""
    return run_folder(out, job.names) / f"looks_{job.digest[:DIGEST]}.csv"


def _label_file(cases: str, strength: str) -> str:
    return f"labels_{cases}_{strength}.npz"


def _table(path: Path, kinds: Mapping[str, type]) -> pd.DataFrame:
    """A table of a run. Raises `InputError` if the table is damaged, lacks one of these columns, or a column
    holds values of another type.
    """
    columns, rows = read_table(path)
    try:
        return pd.DataFrame(rows, columns=list(columns)).astype(dict(kinds))
    except (ValueError, LookupError) as error:
        raise InputError(f"{path}: damaged: {error}; `brats-seg train --resume` writes it again") from None


def _seconds(run: Path) -> float:
    columns = ["training_s", "mining_s", "validation_s", "checkpoint_s"]
    return round(float(_table(run / "timing.csv", dict.fromkeys(columns, float))[columns].sum().sum()), 1)


def _training_seconds(run: Path) -> dict[int, float]:
    """Seconds of training (including sampling and augmentation) and mining up to the end of each epoch."""
    timing = _table(run / "timing.csv", {"epoch": int, "training_s": float, "mining_s": float})
    seconds = (timing["training_s"] + timing["mining_s"]).cumsum()
    return {int(epoch): round(float(s), 3) for epoch, s in zip(timing["epoch"], seconds, strict=True)}


def _ledger_means(run: Path, *, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """The composition of the drawn patches of a run: the mean over its epochs, by class."""
    shares, counts = ["requested_share", "center_share", "voxel_share"], ["n_hard", "n_distinct", "n_draws"]
    ledger = _table(run / "ledger.csv", {"class": str} | dict.fromkeys([*shares, *counts], float))
    ledger = ledger[ledger["class"].isin(classes)]
    sums = ledger.groupby("class")[shares].mean().round(6)
    draws = ledger.groupby("class")[counts].sum()
    for share, n in (("hard_share", "n_hard"), ("distinct_share", "n_distinct")):
        sums[share] = (draws[n] / draws["n_draws"].clip(lower=1)).round(6)
    return {str(name): {str(k): float(v) for k, v in row.items()} for name, row in sums.iterrows()}


def _segment(
    run: Path, path: Path, bank: PatchBank, *, files: Mapping[str, Path], runtime: Runtime
) -> Iterator[tuple[str, str, TissueMap]]:
    """Strength, case and label map of the selected cases of the bank, segmented from the volumes in the bank.
    One pass of the network serves all strengths.

    `files` holds the `.npz` file of each strength. The file keeps the label maps for the pictures.
    """
    trained = open_run(run)
    shifts = []
    for strength in files:
        tuned = (
            pipeline.tune(run, path, device=str(runtime.device), cleanup=False, threads=1)
            if strength == TUNED
            else ()
        )
        shifts.append(trained.networks[0].class_shift(tuned[0].correct_priors if tuned else float(strength)))
    (segmenter,) = load_segmenters((trained,), runtime=runtime)
    with ExitStack() as stack:
        stores = [
            stack.enter_context(ZipFile(stack.enter_context(atomic(to)), "w", ZIP_DEFLATED))
            for to in files.values()
        ]
        for number in bank.selected:
            image, _ = bank.volume(number)
            maps = segment_once(
                segmenter.network,
                image,
                feed=segmenter.feed_for(image),
                class_shifts=shifts,
            )
            for strength, store, labels in zip(files, stores, maps, strict=True):
                with store.open(f"{bank.cases[number].id}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, labels, allow_pickle=False)
                yield strength, bank.cases[number].id, labels
