"""Samplers side by side on one bank: folds x seeds -> one table."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pandas as pd

from brats_seg import pipeline
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.listing import hold_bank, verify_bank
from brats_seg.core.config import Config, parse_config
from brats_seg.core.engine import Cluster
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import atomic, read_json, read_table, write_json, write_text
from brats_seg.core.grid import Cell, GridReport, check_identity, read_cells, run_grid
from brats_seg.core.local_engine import worker_number
from brats_seg.core.run_folder import BEST
from brats_seg.core.runtime import Runtime, n_workers, start_runtime, worker_device
from brats_seg.core.shapes import TissueMap
from brats_seg.evaluation.comparison import summarize_runs
from brats_seg.evaluation.equal_time import summarize_equal_time
from brats_seg.evaluation.run_rows import (
    COLUMNS,
    DIGEST,
    LOOK_COLUMNS,
    Row,
    read_finished,
    variant_of,
    write_rows,
)
from brats_seg.evaluation.volumes import score_volume
from brats_seg.inference.dense import label_maps as segment_once
from brats_seg.inference.runs import load_segmenters
from brats_seg.models.trained import open_run
from brats_seg.phantoms.cohort import PHANTOM_VERSION, make_traits
from brats_seg.reporting.experiment_page import write_experiment_page
from brats_seg.reporting.experiment_table import table_markdown
from brats_seg.scans.labels import REGIONS
from brats_seg.strategies import (
    TUNED,
    ExperimentConfig,
    Phantoms,
    Strategy,
    laid_over,
    look_epochs,
    make_strategies,
)
from brats_seg.training.log import precision_name
from brats_seg.training.run import look_folder
from brats_seg.training.split import Split, make_split

SCHEMA = 2
"""What the digest of a cell stands for. 1: the knobs that are not at their defaults; 2: every knob."""
DEFAULTS_OF_SCHEMA_1: Mapping[str, Any] = {"hard.recycle": True, "hard.subset": None}
"""Defaults that have changed since schema 1, as they were. A knob that came later has, as its default, what
was done before.
"""
TRAINED = "trained.json"
"""What a run of an experiment was trained on and with, in its folder."""


@dataclass(frozen=True)
class ExperimentReport:
    """What came of it: the grid's report, summary.json, and the page."""

    grid: GridReport
    summary: Mapping[str, Any]
    page: Path

    @property
    def exit_code(self) -> int:
        """1 where a run failed."""
        return int(bool(self.grid.failed))


def run_experiment(
    bank: str | Path,
    out: str | Path,
    config: ExperimentConfig,
    *,
    title: str = "Experiment",
    workers: int = 0,
    only: Sequence[str] = (),
    known: str | Path | None = None,
    device: str = "auto",
    cluster: Cluster | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ExperimentReport:
    """Train, segment and score every strategy on every fold with every seed; what is finished is kept, what
    was killed goes on.

    Writes `runs.csv`, `summary.json`, `table.md` and `report.html` into `out`, of what is finished where it
    is interrupted too, and with `predict.looks` also `looks.csv`; each run has its folder
    `runs/<strategy>/fold<f>/seed<s>`.

    Args:
        bank: a patch bank; with `phantoms` in the config, the folder where their banks are made or found.
        out: folder to write into.
        config: what to compare.
        title: of the table and the page.
        workers: processes, each computing with one thread; 0 for one per core, or per GPU.
        only: names of strategies; none for all.
        known: a runs.csv of runs finished elsewhere, which are taken over; with `predict.looks` the looks.csv
            beside it is taken over too.
        device: where each process computes; several GPUs are used in turn.
        cluster: whose workers train the runs, instead of processes of this machine.
        say: takes the line that tells how many runs were taken over.

    Raises:
        UsageError: a strategy, knob, class or fold that does not exist, or a seed given twice.
        InputError: a bank that is damaged or not the one the experiment was begun with, a training fold that
            lacks a class another fold has, a run folder of a strategy whose knobs were others, or a `known`
            table that lacks rows or has none of these runs.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what is finished is kept and written.
    """
    bank, out, known = Path(bank), Path(out), Path(known) if known is not None else None
    strategies, asked = (
        make_strategies(config),
        {strategy.name for strategy in make_strategies(config, only=only)},
    )
    for name, cohort in config.phantoms.items():
        try:
            make_traits(cohort.traits)
        except UsageError as error:
            raise UsageError(f"phantoms.{name}: {error}") from None
    if config.phantoms and (bank / "bank.json").exists():
        raise UsageError(
            f"{bank}: is a bank, and the config has phantoms of its own; give another folder, to make their "
            "banks in"
        )
    banks = {name: _phantom_bank(bank / name, cohort) for name, cohort in config.phantoms.items()} or {
        "": bank
    }
    with ExitStack() as held:
        for path in banks.values():
            held.enter_context(hold_bank(path))
        cells: list[Cell] = []
        opened = {data: PatchBank(path, patch_size=(1, 1)) for data, path in banks.items()}
        for data, one in opened.items():
            for strategy in strategies:
                _check_fit(one, strategy)
            folds = _folds(one, config)
            _check_classes(one, strategies, folds=folds, seeds=config.seeds)
            cells += [
                _cell(
                    data,
                    one.digest,
                    strategy,
                    fold=fold,
                    seed=seed,
                    cases=config.predict.cases,
                    looks=config.predict.looks,
                )
                for strategy, seed, fold in product(strategies, config.seeds, folds)
            ]
        _check_schema(out)
        identity = {
            "study": "experiment",
            "schema": SCHEMA,
            **{f"bank {data}".strip(): one.digest[:DIGEST] for data, one in opened.items()},
        }
        check_identity(out, identity)
        taken: dict[str, list[Row]] = {}
        if known is not None:
            taken = _known(known, cells, opened)
            if config.predict.looks:
                _take_looks(known.with_name("looks.csv"), [c for c in cells if c.digest in taken], out)
            say(f"{len(taken)} of {len(cells)} runs taken over from {known}")
        todo = [cell for cell in cells if cell.job["strategy"] in asked]
        # Seed by seed and fold by fold, so that an experiment that is stopped has its strategies on the same
        # runs.
        todo.sort(key=lambda cell: (config.seeds.index(cell.job["seed"]), cell.job["fold"]))
        finished = {*taken, *read_cells(out)}
        _check_before(out, [cell for cell in todo if cell.digest not in finished], opened)
        write = partial(_write_results, out, cells, config, banks=banks, title=title)
        try:
            grid = run_grid(
                partial(run_cell, banks=banks, out=out, device=device),
                todo,
                store=out,
                identity=identity,
                workers=n_workers(workers, device=device),
                cluster=cluster,
                label="experiment",
                note=_note,
                known=taken,
            )
        except KeyboardInterrupt:
            write(failed=())
            raise
        return ExperimentReport(grid, *write(failed=grid.failed))


def _write_results(
    out: Path,
    cells: Sequence[Cell],
    config: ExperimentConfig,
    *,
    banks: Mapping[str, Path],
    title: str,
    failed: Sequence[tuple[str, str]],
) -> tuple[Mapping[str, Any], Path]:
    """Tables and page of the cells that are finished, those that `only` left out too, in the order of the
    config.
    """
    stored = read_cells(out)
    finished = [cell for cell in cells if cell.digest in stored]
    rows = [row for cell in finished for row in stored[cell.digest]]
    picked_on: dict[tuple[str, str], str] = {}
    for strategy in make_strategies(config):
        picked_on |= strategy.picked_on(cases=config.predict.cases)
    summary = summarize_runs(
        rows,
        against=config.against,
        same_brains=_same_brains(config),
        n_asked=len(cells),
        failed=failed,
        picked_on=picked_on,
    )
    write_rows(out / "runs.csv", rows)
    if config.predict.looks:
        looks = [row for cell in finished for row in _looks_of(out, cell)]
        write_rows(out / "looks.csv", looks, columns=LOOK_COLUMNS)
        summary |= {"equal_time": summarize_equal_time(looks, against=config.against)}
    write_json(out / "summary.json", summary)
    write_text(out / "table.md", table_markdown(summary, title=title, against=config.against))
    page = write_experiment_page(
        out,
        rows,
        summary,
        banks=banks,
        label_maps=partial(label_maps, out),
        title=title,
        against=config.against,
        pictures=config.pictures,
    )
    return summary, page


def _check_fit(bank: PatchBank, strategy: Strategy) -> None:
    """Refuse a strategy whose knobs do not fit each other or the bank: it would fail after the others have
    trained for hours.
    """
    for config in strategy.configs:
        try:
            pipeline.check_fit(pipeline.open_bank(bank.path, config), config)
        except UsageError as error:
            raise UsageError(f"strategy '{strategy.name}': {error}") from None


def _check_before(out: Path, todo: Sequence[Cell], banks: Mapping[str, PatchBank]) -> None:
    """Refuse, before the first new run, a folder that holds another run of the same name, and banks whose
    files are damaged.
    """
    for cell in todo:
        run = run_folder(out, cell.job)
        if (run / TRAINED).exists() and read_json(run / TRAINED) != _training(cell.job):
            raise InputError(
                f"{run}: was trained with other knobs than the config now gives strategy "
                f"'{cell.job['strategy']}'; give the strategy "
                "another name, or choose a new folder"
            )
    for data in sorted({cell.job["data"] for cell in todo}):
        used: set[str] = set()
        for split, cases in {
            (_split(banks[data], cell.job), cell.job["cases"]) for cell in todo if cell.job["data"] == data
        }:
            used.update(
                split.train, split.inner, split.held_out if cases == "held_out" else ()
            )  # a search opens no held-out case
        problems = verify_bank(banks[data].path, cases=used)
        if problems:
            raise InputError(
                f"{problems[0].case}: {problems[0].file}: {problems[0].what}; {problems[0].expected}"
            )


def _phantom_bank(folder: Path, cohort: Phantoms) -> Path:
    """The bank of a cohort; made, or its making gone on with, where it is not there. Raises `InputError`
    where another cohort's is.
    """
    made, bank, wanted = (
        folder / "cohort.json",
        folder / "bank",
        {**cohort.model_dump(mode="json"), "version": PHANTOM_VERSION},
    )
    if made.exists() and read_json(made) != wanted:
        raise InputError(
            f"{made}: is of another cohort than the config's phantoms.{folder.name}; choose a new folder for "
            "BANK"
        )
    if not (bank / "bank.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(made, wanted)
        pipeline.phantom(
            folder / "scans",
            n_cases=cohort.cases,
            layout=cohort.layout,
            size=cohort.size,
            seed=cohort.seed,
            traits=cohort.traits,
        )
        if pipeline.preprocess(folder / "scans", bank).exit_code:
            raise InputError(
                f"{bank}: the bank of a phantom cohort was refused; `brats-seg verify {folder / 'scans'}` "
                "says why"
            )
    return bank


def _same_brains(config: ExperimentConfig) -> tuple[str, ...]:
    """The first cohort of phantoms, and those that differ from it by their traits alone."""
    cohorts = {name: cohort.model_dump(exclude={"traits"}) for name, cohort in config.phantoms.items()}
    return tuple(name for name, cohort in cohorts.items() if cohort == next(iter(cohorts.values())))


def _folds(bank: PatchBank, config: ExperimentConfig) -> tuple[int, ...]:
    n_folds = len(bank.folds)
    absent = [fold for fold in config.folds or () if fold >= n_folds]
    if absent:
        raise UsageError(f"folds: {absent[0]} is not a fold of {bank.path}; it has 0..{n_folds - 1}")
    return config.folds or tuple(range(n_folds))


def _check_classes(
    bank: PatchBank, strategies: Sequence[Strategy], *, folds: Sequence[int], seeds: Sequence[int]
) -> None:
    """Refuse a training fold without a class that the bank has: a strategy that draws by class could not be
    compared there.
    """
    counts = np.array([case.n_voxels for case in bank.cases])
    for validation in {strategy.configs[0].validation for strategy in strategies}:
        for fold, seed in product(folds, seeds):
            trained = make_split(bank, fold=fold, validation=validation, seed=seed).train
            found = counts[[case.id in trained for case in bank.cases]].sum(axis=0)
            lacking = [
                name
                for name, n, n_all in zip(bank.classes, found, counts.sum(axis=0), strict=True)
                if n_all and not n
            ]
            if lacking:
                raise InputError(
                    f"{bank.path}: the {len(trained)} training cases of fold {fold}, seed {seed} have no "
                    f"voxel of {', '.join(lacking)}, "
                    "which other folds have; build the bank with fewer folds or another --seed (`preprocess "
                    "--rebuild`)"
                )


def _cell(
    data: str, digest: str, strategy: Strategy, *, fold: int, seed: int, cases: str, looks: int = 0
) -> Cell:
    job: dict[str, Any] = {
        "schema": SCHEMA,
        "data": data,
        "bank": digest,
        "strategy": strategy.name,
        "configs": [_seeded(one, seed) for one in strategy.configs],
        "correct_priors": list(strategy.correct_priors),
        "cases": cases,
        "fold": fold,
        "seed": seed,
    }
    if looks:  # runs without looks keep the digest that they had before there were looks
        job["looks"] = looks
    return Cell(
        "/".join(str(part) for part in (data, strategy.name, f"fold{fold}", f"seed{seed}") if part), job
    )


def _split(bank: PatchBank, job: Mapping[str, Any]) -> Split:
    """The cases of a cell by their use."""
    return make_split(
        bank, fold=job["fold"], validation=parse_config(job["configs"][0]).validation, seed=job["seed"]
    )


def _seeded(config: Config, seed: int) -> dict[str, Any]:
    """Every knob, those at their defaults too: a default that changes one day makes another cell."""
    return laid_over(config.model_dump(mode="json"), {"training.seed": seed})


def _check_schema(out: Path) -> None:
    """Refuse a folder whose digests are of another schema."""
    path = out / "grid.json"
    identity = read_json(path) if path.exists() else {"schema": SCHEMA}
    if isinstance(identity, dict) and identity.get("schema", 1) != SCHEMA:
        raise InputError(
            f"{out}: was written by another version of brats-seg, which named runs in another way; choose a "
            "new folder and take the "
            f"finished runs over with --known {out / 'runs.csv'}"
        )


def _digest_of_schema_1(job: Mapping[str, Any]) -> str:
    """The digest that a cell had in schema 1."""
    configs = [_knobs_of_schema_1(tree) for tree in job["configs"]]
    return Cell(
        "", {name: value for name, value in job.items() if name != "schema"} | {"configs": configs}
    ).digest


def _knobs_of_schema_1(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a whole config that were not at their defaults in schema 1."""
    if tree["sampler"]["kind"] != "hard":  # it uses no `hard` knobs: they may be what they were
        tree = laid_over(tree, DEFAULTS_OF_SCHEMA_1)
    return _apart(tree, laid_over(Config().model_dump(mode="json"), DEFAULTS_OF_SCHEMA_1))


def _apart(tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What of a nested mapping differs from the defaults."""
    apart: dict[str, Any] = {}
    for name, value in tree.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = _apart(value, default), {}
        if name not in defaults or value != default:
            apart[name] = value
    return apart


def _known(
    path: Path, cells: Sequence[Cell], banks: Mapping[str, PatchBank]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of a runs.csv, under the whole digests of the cells that they answer; rows that stand twice count
    once.

    Raises:
        InputError: no such table, one that lacks some rows of a run, or one of other runs altogether.
    """
    finished, found = read_finished(path), {}
    for cell in cells:
        rows = {(row["correct_priors"], row["case"], row["region"]): row for row in _rows_of(cell, finished)}
        if not rows:
            continue
        bank, job = banks[cell.job["data"]], cell.job
        split = _split(bank, job)
        cases = split.held_out if job["cases"] == "held_out" else split.inner
        wanted = set(product(job["correct_priors"], cases, (*REGIONS, *bank.classes)))
        if set(rows) != wanted:
            raise InputError(
                f"{path}: {len(wanted - set(rows))} of the {len(wanted)} rows of {cell.key} are missing; "
                "leave out the rest"
            )
        found[cell.digest] = list(rows.values())
    if not found:
        theirs, ours = (
            {row["bank"] for rows in finished.values() for row in rows},
            {bank.digest[:DIGEST] for bank in banks.values()},
        )
        was = ", ".join(f"{knob}={json.dumps(value)}" for knob, value in DEFAULTS_OF_SCHEMA_1.items())
        others = (
            f"the same bank with other knobs or seeds (before schema {SCHEMA} the defaults were {was}, and "
            "runs with "
            "rotated or scaled patches are to be made again: such patches had air in their corners)"
            if theirs & ours
            else f"bank {', '.join(sorted(theirs)) or 'none'}"
        )
        raise InputError(
            f"{path}: none of its {len(finished)} runs is one of this experiment's, on bank "
            f"{', '.join(sorted(ours))}; they are of {others}"
        )
    return found


def _take_looks(path: Path, cells: Sequence[Cell], out: Path) -> None:
    """Keep the rows of a looks.csv that these cells have in it. Raises `InputError` where a cell has none."""
    finished = read_finished(path, columns=LOOK_COLUMNS)
    for cell in cells:
        rows = finished.get(cell.digest[:DIGEST])
        if not rows:
            raise InputError(f"{path}: has no rows of {cell.key}, which runs.csv beside it has; leave it out")
        _looks_file(out, cell).parent.mkdir(parents=True, exist_ok=True)
        write_rows(_looks_file(out, cell), rows, columns=LOOK_COLUMNS)


def _looks_of(out: Path, cell: Cell) -> list[Row]:
    """Rows of looks.csv of a finished cell; none where its run folder was deleted."""
    if not _looks_file(out, cell).exists():
        return []
    return read_finished(_looks_file(out, cell), columns=LOOK_COLUMNS)[cell.digest[:DIGEST]]


def _looks_file(out: str | Path, cell: Cell) -> Path:
    return run_folder(out, cell.job) / f"looks_{cell.digest[:DIGEST]}.csv"


def _rows_of(cell: Cell, finished: Mapping[str, list[Row]]) -> list[Row]:
    """The rows of a cell, under its digest or under the one that it had in schema 1.

    A run of schema 1 that rotated or scaled its patches was another training: its patches had air in their
    corners.
    """
    rows = finished.get(cell.digest[:DIGEST], [])
    if rows or any(_moves_patches(tree["augment"]) for tree in cell.job["configs"]):
        return rows
    return finished.get(_digest_of_schema_1(cell.job)[:DIGEST], [])


def _moves_patches(augment: Mapping[str, Any]) -> bool:
    """Whether patches are rotated or scaled."""
    turns = augment["rotate_degrees"] > 0 or tuple(augment["scale"]) != (1.0, 1.0)
    return turns and augment["affine_probability"] > 0


def _note(key: str, rows: list[dict[str, Any]]) -> str:
    first = [row for row in rows if variant_of(row) == variant_of(rows[0]) and row["n_reference_vox"]]
    found = {region: [row["dice"] for row in first if row["region"] == region] for region in REGIONS}
    return f"{key}: " + ", ".join(
        f"{region} {np.mean(values):.3f}" for region, values in found.items() if values
    )


# One cell, in a process of its own


def run_cell(
    job: Mapping[str, Any], *, banks: Mapping[str, str | Path], out: str | Path, device: str
) -> list[dict[str, Any]]:
    """Train a strategy on one fold with one seed, or go on with it; segment and score its cases; give the
    rows of `COLUMNS`.

    Raises:
        KeyboardInterrupt: a signal stopped the training; it is saved.
    """
    bank, fold, device = Path(banks[job["data"]]), job["fold"], worker_device(device, worker=worker_number())
    run = run_folder(out, job)
    configs = [parse_config(tree) for tree in job["configs"]]
    opened = pipeline.open_bank(bank, configs[0])
    if opened.digest != job["bank"]:
        raise InputError(f"{bank}: has changed since the experiment was begun; start again in a new folder")
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / TRAINED, _training(job))
    folders = [run] if len(configs) == 1 else [run / "detector", run / "classifier"]
    epochs = look_epochs(configs[0].training.epochs, job["looks"]) if "looks" in job else ()
    for config, folder in zip(configs, folders, strict=True):
        result = pipeline.train(
            bank, folder, config, fold=fold, resume=True, looks=epochs[:-1], device=device
        )
        if result.ended == "stopped":
            raise KeyboardInterrupt
    if len(folders) == 2 and not (run / BEST).exists():
        pipeline.compose(folders[0], folders[1], run)
    runtime = start_runtime(device=device, threads=1)
    split, cell = _split(opened, job), Cell("", job)
    common = {
        **dict.fromkeys(COLUMNS),
        **{name: job[name] for name in ("data", "strategy", "fold", "seed", "cases")},
        "patches": sum(_n_patches(config) for config in configs),
        "seconds": sum(_seconds(folder) for folder in folders),
        "config": Cell("", {"configs": job["configs"]}).digest[:DIGEST],
        "bank": job["bank"][:DIGEST],
        "versions": f"brats-seg {version('brats-seg')}, torch {version('torch')}, numpy {version('numpy')}, "
        f"{runtime.device.type} {precision_name(runtime)}",
        "cell": cell.digest[:DIGEST],
    }
    mix = _ledger_means(folders[0], classes=opened.classes)
    scored_bank = opened.select(split.held_out if job["cases"] == "held_out" else split.inner)

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
        write_rows(_looks_file(out, cell), marked, columns=LOOK_COLUMNS)
    return [row | mix.get(row["region"], {}) for row in rows]


def _score(run: Path, path: Path, bank: PatchBank, *, job: Mapping[str, Any], runtime: Runtime) -> list[Row]:
    """Segment and score a cell's cases by the weights in a folder: rows by strength of prior correction."""
    files = {strength: run / _label_file(job["cases"], strength) for strength in job["correct_priors"]}
    rows: dict[str, list[Row]] = {strength: [] for strength in files}
    for strength, case, labels in _segment(run, path, bank, files=files, runtime=runtime):
        rows[strength] += [{"correct_priors": strength, **row} for row in score_volume(bank, case, labels)]
    return [row for of_one in rows.values() for row in of_one]


def _training(job: Mapping[str, Any]) -> dict[str, Any]:
    """What of a cell decides its training and the weights that are kept; which strengths of prior correction
    it is scored with does not.
    """
    return {name: job[name] for name in ("bank", "configs", "fold", "seed", "looks") if name in job}


def run_folder(out: str | Path, run: Mapping[str, Any]) -> Path:
    """Where the run of a job or a row lies."""
    return Path(out) / "runs" / run["data"] / run["strategy"] / f"fold{run['fold']}" / f"seed{run['seed']}"


def label_maps(out: str | Path, row: Mapping[str, Any]) -> Path:
    """Where the label maps lie that a row is of."""
    return run_folder(out, row) / _label_file(row["cases"], row["correct_priors"])


def _label_file(cases: str, strength: str) -> str:
    return f"labels_{cases}_{strength}.npz"


def _n_patches(config: Config) -> int:
    epochs = config.training.epochs + (
        config.phases.epochs or config.training.epochs if config.phases.two_phase else 0
    )
    return epochs * config.training.steps * config.training.batch_size


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
    timing = _table(run / "timing.csv", dict.fromkeys(columns, float))
    return round(float(timing[columns].sum().sum()), 1)


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
        correct = tuned[0].correct_priors if tuned else float(strength)
        shifts.append(trained.networks[0].class_shift(correct))
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
                n_dims=segmenter.n_dims,
                divisor=segmenter.divisor,
                window=segmenter.window_for(image),
                slices_around=segmenter.slices_around,
                class_shifts=shifts,
            )
            for strength, store, labels in zip(files, stores, maps, strict=True):
                with store.open(f"{bank.cases[number].id}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, labels, allow_pickle=False)
                yield strength, bank.cases[number].id, labels
