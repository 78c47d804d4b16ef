"""Compare strategies on one bank: strategies x folds x seeds -> one table."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from brats_seg import pipeline
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.listing import hold_bank, verify_bank
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import read_json, write_json, write_text
from brats_seg.core.runtime import n_workers
from brats_seg.evaluation.comparison import summarize_equal_time, summarize_runs
from brats_seg.evaluation.run_rows import DIGEST, LOOK_COLUMNS, Row, variant_of, write_rows
from brats_seg.phantoms.cohort import PHANTOM_VERSION, make_traits, write_cohort
from brats_seg.reporting.experiment_page import write_experiment_page
from brats_seg.reporting.experiment_table import table_markdown
from brats_seg.scans.labels import REGIONS
from brats_seg.studies.earlier import check_schema, known_rows, looks_of, take_looks
from brats_seg.studies.grid import Grid, GridReport, GridWorkers, run_grid
from brats_seg.studies.run_job import (
    SCHEMA,
    TRAINED,
    RunJob,
    label_maps,
    make_job,
    run_cell,
    run_folder,
)
from brats_seg.studies.store import check_identity, read_cells
from brats_seg.studies.strategies import ExperimentConfig, Phantoms, Strategy, make_strategies
from brats_seg.training.split import make_split


@dataclass(frozen=True)
class ExperimentReport:
    """The result of an experiment: the report of the grid, the content of summary.json, and the path of the
    page.
    """

    grid: GridReport
    summary: Mapping[str, Any]
    page: Path

    @property
    def exit_code(self) -> int:
        """1 if a run failed, else 0."""
        return int(bool(self.grid.failed))


def run_experiment(
    bank: str | Path,
    out: str | Path,
    config: ExperimentConfig,
    *,
    on: GridWorkers = GridWorkers(),
    only: Sequence[str] = (),
    known: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> ExperimentReport:
    """Train, segment and score every strategy on every fold with every seed. Finished runs are kept, and
    interrupted runs are resumed.

    Writes `runs.csv`, `summary.json`, `table.md` and `report.html` into `out`, and with `predict.looks` also
    `looks.csv`. If the experiment is interrupted, the files contain the finished runs. Each run has its
    folder `runs/<strategy>/fold<f>/seed<s>`.

    Args:
        bank: a patch bank; with `phantoms` in the config, the folder in which their banks are built or found.
        out: folder to write into.
        config: the strategies to compare.
        on: the processes that train, segment and score.
        only: names of the strategies to run; empty for all.
        known: a runs.csv of runs that were finished elsewhere. Their rows are used, and the runs are not
            trained again. With `predict.looks` the looks.csv in the same folder is used too.
        say: receives a line of text with the number of runs taken from `known`.

    Raises:
        UsageError: a strategy, knob, class or fold does not exist, or a seed is given twice.
        InputError: the bank is damaged or is not the bank with which the experiment started, the training
            cases of a fold lack a class of the bank, a run folder was trained with other knobs of its
            strategy, or the `known` table lacks rows or has none of these runs.
        KeyboardInterrupt: Ctrl-C or SIGTERM. Finished runs are kept, and the files are written.
    """
    bank, out, known = Path(bank), Path(out), Path(known) if known is not None else None
    strategies, chosen = (
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
            f"{bank}: is a bank, but the config builds phantoms; give another folder for their banks"
        )
    banks = {name: _phantom_bank(bank / name, cohort) for name, cohort in config.phantoms.items()} or {
        "": bank
    }
    with ExitStack() as held:
        for path in banks.values():
            held.enter_context(hold_bank(path))
        jobs: list[RunJob] = []
        opened = {data: PatchBank(path, patch_size=(1, 1)) for data, path in banks.items()}
        for data, one in opened.items():
            for strategy in strategies:
                _check_fit(one, strategy)
            folds = _folds(one, config)
            _check_classes(one, strategies, folds=folds, seeds=config.seeds)
            jobs += [
                make_job(
                    strategy,
                    data=data,
                    bank=one.digest,
                    fold=fold,
                    seed=seed,
                    cases=config.predict.cases,
                    looks=config.predict.looks,
                )
                for strategy, seed, fold in product(strategies, config.seeds, folds)
            ]
        check_schema(out)
        identity = {
            "study": "experiment",
            "schema": SCHEMA,
            **{f"bank {data}".strip(): one.digest[:DIGEST] for data, one in opened.items()},
        }
        check_identity(out, identity)
        taken: dict[str, list[Row]] = {}
        if known is not None:
            taken = known_rows(known, jobs, opened)
            if config.predict.looks:
                take_looks(known.with_name("looks.csv"), [job for job in jobs if job.digest in taken], out)
            say(f"{len(taken)} of {len(jobs)} runs taken over from {known}")
        todo = [job for job in jobs if job.strategy in chosen]
        # The order is seed by seed and fold by fold. If an experiment is stopped, most strategies have
        # finished the same folds and seeds.
        todo.sort(key=lambda job: (config.seeds.index(job.seed), job.fold))
        finished = {*taken, *read_cells(out)}
        _check_before(out, [job for job in todo if job.digest not in finished], opened)
        write = partial(_write_results, out, jobs, config, banks=banks)
        resolved = replace(on, n=n_workers(on.n, device=on.device))
        try:
            grid = run_grid(
                partial(run_cell, banks=banks, out=out, device=on.device),
                todo,
                Grid(store=out, identity=identity, label="experiment", on=resolved),
                note=_note,
                known=taken,
            )
        except KeyboardInterrupt:
            write(failed=())
            raise
        return ExperimentReport(grid, *write(failed=grid.failed))


def _write_results(
    out: Path,
    jobs: Sequence[RunJob],
    config: ExperimentConfig,
    *,
    banks: Mapping[str, Path],
    failed: Sequence[tuple[str, str]],
) -> tuple[Mapping[str, Any], Path]:
    """Write the tables and the page of all finished runs in the order of the config, including runs that
    `only` left out.
    """
    stored = read_cells(out)
    finished = [job for job in jobs if job.digest in stored]
    rows = [row for job in finished for row in stored[job.digest]]
    picked_on: dict[tuple[str, str], str] = {}
    for strategy in make_strategies(config):
        picked_on |= strategy.picked_on(cases=config.predict.cases)
    summary = summarize_runs(
        rows,
        against=config.against,
        same_brains=_same_brains(config),
        n_asked=len(jobs),
        failed=failed,
        picked_on=picked_on,
    )
    write_rows(out / "runs.csv", rows)
    if config.predict.looks:
        looks = [row for job in finished for row in looks_of(out, job)]
        write_rows(out / "looks.csv", looks, columns=LOOK_COLUMNS)
        summary |= {"equal_time": summarize_equal_time(looks, against=config.against)}
    write_json(out / "summary.json", summary)
    write_text(out / "table.md", table_markdown(summary, title=config.title, against=config.against))
    page = write_experiment_page(
        out,
        rows,
        summary,
        banks=banks,
        label_maps=partial(label_maps, out),
        title=config.title,
        against=config.against,
        pictures=config.pictures,
    )
    return summary, page


def _check_fit(bank: PatchBank, strategy: Strategy) -> None:
    """Refuse a strategy whose knobs do not fit each other or the bank. Otherwise the strategy would fail
    after other strategies have trained for hours.
    """
    for config in strategy.configs:
        try:
            pipeline.check_fit(pipeline.open_bank(bank.path, config), config)
        except UsageError as error:
            raise UsageError(f"strategy '{strategy.name}': {error}") from None


def _check_before(out: Path, todo: Sequence[RunJob], banks: Mapping[str, PatchBank]) -> None:
    """Before the first new run, refuse a folder that holds another run with the same name, and refuse banks
    with damaged files.
    """
    for job in todo:
        run = run_folder(out, job.names)
        if (run / TRAINED).exists() and read_json(run / TRAINED) != job.training():
            raise InputError(
                f"{run}: was trained with other knobs than the config now gives strategy '{job.strategy}'; "
                "give the strategy another name, or choose a new folder"
            )
    for data in sorted({job.data for job in todo}):
        used: set[str] = set()
        for split, cases in {(job.split(banks[data]), job.cases) for job in todo if job.data == data}:
            # a search uses no held-out case
            used.update(split.train, split.inner, split.held_out if cases == "held_out" else ())
        problems = verify_bank(banks[data].path, cases=used)
        if problems:
            raise InputError(
                f"{problems[0].case}: {problems[0].file}: {problems[0].what}; {problems[0].expected}"
            )


def _phantom_bank(folder: Path, cohort: Phantoms) -> Path:
    """Build the bank of a phantom cohort, or resume an interrupted build. Return its path. Raises
    `InputError` if the folder holds another cohort.
    """
    made, bank, wanted = (
        folder / "cohort.json",
        folder / "bank",
        {**cohort.model_dump(mode="json"), "version": PHANTOM_VERSION},
    )
    if made.exists() and read_json(made) != wanted:
        raise InputError(
            f"{made}: belongs to another cohort than phantoms.{folder.name} of the config; choose a new "
            "folder for BANK"
        )
    if not (bank / "bank.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(made, wanted)
        write_cohort(
            folder / "scans",
            n_cases=cohort.cases,
            layout=cohort.layout,
            size=cohort.size,
            seed=cohort.seed,
            traits=make_traits(cohort.traits),
        )
        if pipeline.preprocess(folder / "scans", bank).exit_code:
            raise InputError(
                f"{bank}: the bank of a phantom cohort was refused; `brats-seg verify {folder / 'scans'}` "
                "says why"
            )
    return bank


def _same_brains(config: ExperimentConfig) -> tuple[str, ...]:
    """The first cohort of phantoms, and the cohorts that differ from it only in their traits."""
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
    """Refuse a fold whose training cases lack a class of the bank. On this fold a strategy that draws by
    class could not be compared.
    """
    counts = np.array([case.n_voxels for case in bank.cases])
    for validation in {strategy.configs[0].validation for strategy in strategies}:
        for fold, seed in product(folds, seeds):
            trained = make_split(bank, fold=fold, validation=validation, seed=seed).train
            n_trained = counts[[case.id in trained for case in bank.cases]].sum(axis=0)
            lacking = [
                name
                for name, n, n_all in zip(bank.classes, n_trained, counts.sum(axis=0), strict=True)
                if n_all and not n
            ]
            if lacking:
                raise InputError(
                    f"{bank.path}: the {len(trained)} training cases of fold {fold}, seed {seed} have no "
                    f"voxel of {', '.join(lacking)}, "
                    "which other folds have; build the bank with fewer folds or another --seed (`preprocess "
                    "--rebuild`)"
                )


def _note(key: str, rows: list[dict[str, Any]]) -> str:
    first = [row for row in rows if variant_of(row) == variant_of(rows[0]) and row["n_reference_vox"]]
    dice_of_region = {region: [row["dice"] for row in first if row["region"] == region] for region in REGIONS}
    return f"{key}: " + ", ".join(
        f"{region} {np.mean(values):.3f}" for region, values in dice_of_region.items() if values
    )
