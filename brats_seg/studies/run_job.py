"""One run of an experiment: a strategy trained on a fold with a seed, segmented and scored -> its rows."""

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
"""What the digest of a run stands for. 1: the knobs that are not at their defaults; 2: every knob."""
TRAINED = "trained.json"
"""What a run of an experiment was trained on and with, in its folder."""


@dataclass(frozen=True, kw_only=True)
class RunJob(Job):
    """What decides the rows of a run.

    Attributes:
        data: name of the cohort; "" where there is one bank alone.
        bank: digest of the bank.
        strategy: its name.
        configs: every knob, with the seed: of the run, or of the two stages of a cascade. Knobs at their
            defaults count too: a default that changes one day makes another job.
        correct_priors: strengths of prior correction it is predicted with.
        cases: which cases are scored.
        fold: held out.
        seed: of the training.
        looks: how often the run is scored before its end; 0 for its end alone.
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
        """What a row of the run says of it."""
        return {name: getattr(self, name) for name in ("data", "strategy", "fold", "seed", "cases")}

    @property
    def key(self) -> str:
        """Its name for people."""
        parts = (self.data, self.strategy, f"fold{self.fold}", f"seed{self.seed}")
        return "/".join(part for part in parts if part)

    @property
    def trees(self) -> list[dict[str, Any]]:
        """The configs as plain values."""
        return [config.model_dump(mode="json") for config in self.configs]

    def tree(self) -> dict[str, Any]:
        """All that decides the rows. Runs without looks keep the digest that they had before there were
        looks.
        """
        tree = {"schema": SCHEMA, "bank": self.bank, **self.names, "configs": self.trees}
        tree["correct_priors"] = list(self.correct_priors)
        return tree | ({"looks": self.looks} if self.looks else {})

    def training(self) -> dict[str, Any]:
        """What of it decides the training and the weights that are kept; which strengths of prior correction
        it is scored with does not.
        """
        tree = self.tree()
        return {name: tree[name] for name in ("bank", "configs", "fold", "seed", "looks") if name in tree}

    def split(self, bank: PatchBank) -> Split:
        """The cases of the bank by their use."""
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
    """Train a strategy on one fold with one seed, or go on with it; segment and score its cases; give the
    rows of `COLUMNS`.

    Raises:
        KeyboardInterrupt: a signal stopped the training; it is saved.
    """
    bank, device = Path(banks[job.data]), worker_device(device, worker=worker_number())
    run, configs = run_folder(out, job.names), job.configs
    opened = pipeline.open_bank(bank, configs[0])
    if opened.digest != job.bank:
        raise InputError(f"{bank}: has changed since the experiment was begun; start again in a new folder")
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
        "patches": sum(_n_patches(config) for config in configs),
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
    """Segment and score a cell's cases by the weights in a folder: rows by strength of prior correction."""
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
    """Where the run of a job or a row lies."""
    return Path(out) / "runs" / run["data"] / run["strategy"] / f"fold{run['fold']}" / f"seed{run['seed']}"


def label_maps(out: str | Path, row: Mapping[str, Any]) -> Path:
    """Where the label maps lie that a row is of."""
    return run_folder(out, row) / _label_file(row["cases"], row["correct_priors"])


def looks_file(out: str | Path, job: RunJob) -> Path:
    """Where the rows of looks.csv of one run lie."""
    return run_folder(out, job.names) / f"looks_{job.digest[:DIGEST]}.csv"


def _label_file(cases: str, strength: str) -> str:
    return f"labels_{cases}_{strength}.npz"


def _n_patches(config: Config) -> int:
    return config.n_epochs * config.training.steps * config.training.batch_size


def _table(path: Path, kinds: Mapping[str, type]) -> pd.DataFrame:
    """A table of a run. Raises `InputError` where it is damaged, or lacks one of these columns, or a column
    holds something else.
    """
    columns, rows = read_table(path)
    try:
        return pd.DataFrame(rows, columns=list(columns)).astype(dict(kinds))
    except (ValueError, LookupError) as error:
        raise InputError(f"{path}: damaged: {error}; `brats-seg train --resume` writes it anew") from None


def _seconds(run: Path) -> float:
    columns = ["training_s", "mining_s", "validation_s", "checkpoint_s"]
    return round(float(_table(run / "timing.csv", dict.fromkeys(columns, float))[columns].sum().sum()), 1)


def _training_seconds(run: Path) -> dict[int, float]:
    """Seconds of training (sampling and augmentation are part of it) and mining up to the end of each
    epoch.
    """
    timing = _table(run / "timing.csv", {"epoch": int, "training_s": float, "mining_s": float})
    seconds = (timing["training_s"] + timing["mining_s"]).cumsum()
    return {int(epoch): round(float(s), 3) for epoch, s in zip(timing["epoch"], seconds, strict=True)}


def _ledger_means(run: Path, *, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """The mix of a run, mean over its epochs, by class."""
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
    """Strength, case and label map of the bank's selected cases, segmented from its own volumes: one pass for
    all strengths.

    `files` holds the `.npz` of each strength, where the label maps are kept for the pictures.
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
