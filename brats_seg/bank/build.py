"""Cases -> bank, resumable."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brats_seg.bank.assemble import assemble, unlist
from brats_seg.bank.entry import (
    EntryResult,
    EntryTask,
    Settings,
    check_disk,
    find_entry,
    is_damaged,
    read_settings,
    refuse,
    write_entry,
)
from brats_seg.bank.listing import read_listing
from brats_seg.bank.records import is_bank
from brats_seg.core.dask_engine import TOKEN, Cluster
from brats_seg.core.engine import run_tasks
from brats_seg.core.errors import InputError, UsageError, is_disk_full
from brats_seg.core.files import lock, read_json
from brats_seg.core.outcome import Outcome
from brats_seg.scans.case import MODALITIES, Case, Problem
from brats_seg.scans.check import untold_schema
from brats_seg.scans.labels import MERGED, SCHEMAS, common_classes
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.releases import LAYOUTS

_BUILD_LOCK = ".build.lock"


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        done: ids of the cases that this build made.
        skipped: ids of the cases that an earlier build prepared.
        problems: all problems; a case with an error was refused.
        missing: ids of the cases of other parts that are not finished yet.
        classes: tissue classes of the bank.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    problems: tuple[Problem, ...]
    missing: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether `bank.json` was written: every case is in the bank or refused."""
        return not self.missing

    @property
    def refused(self) -> tuple[Problem, ...]:
        """The errors."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def exit_code(self) -> int:
        """1 if a case was refused, else 0."""
        return int(bool(self.refused))


@dataclass(frozen=True)
class BuildOptions:
    """Which cases go into a bank, and how they are prepared.

    Attributes:
        n4: correct bias fields first; the fields are kept in the folder `n4` of the bank.
        percentiles: of the brain's intensities, at which each modality is clipped.
        resample: resample cases whose spacing differs by more than 5 % from 1 mm, instead of refusing them.
        n_folds, seed: number of folds, and seed of their shuffle.
        part: (i, n), counted from 1: make every n-th case, from the i-th.
        rebuild: change the settings or folds of a finished bank, and make cases with damaged files again.
        synthetic, schema: as in `find_cases`.
        modalities: channels, in order; empty for the modalities that the layouts of all cases have.

    Raises:
        UsageError: a part outside 1..n, or percentiles that are not in rising order.
    """

    n4: bool = False
    percentiles: tuple[float, float] = (0.5, 99.5)
    resample: bool = False
    n_folds: int = 4
    seed: int = 0
    part: tuple[int, int] = (1, 1)
    rebuild: bool = False
    synthetic: bool = False
    schema: str | None = None
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        (low, high), (first, step) = self.percentiles, self.part
        if not 0 <= low < high <= 100:
            raise UsageError(
                f"--percentiles {low:g} {high:g}: give two numbers from 0 to 100, the lower one first"
            )
        if not 1 <= first <= step:
            raise UsageError(f"--part {first}/{step}: the first number must lie in 1..{step}")


def build_bank(
    data: Path,
    bank: Path,
    *,
    options: BuildOptions = BuildOptions(),
    workers: int = 1,
    cluster: Cluster | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> BuildReport:
    """Make a bank of every good case under a folder, or continue an unfinished bank; a finished case is not
    made again.

    The folder of a case appears only when it is complete. When all cases are finished (or refused),
    `folds.json` and `bank.json` are written; if parts run at the same time, the last one does this. A
    finished bank gets new and changed cases, but keeps its settings and the number and seed of its folds.

    Args:
        data: folder of scans, or a manifest.
        bank: folder to create or to continue.
        options: which cases, and how.
        workers: processes at a time.
        cluster: whose workers make the cases, instead of processes of this machine.
        say: called with a line of text before each step.

    Raises:
        InputError: no case at all, a folder that is not a bank, not enough disk space, another build in
            progress, or a finished bank that would change while another process reads it.
        UsageError: other settings or folds than those of a finished bank.
    """
    first, step = options.part
    found_cases = find_cases(
        data, synthetic=options.synthetic, required=options.modalities or None, schema=options.schema
    )
    problems = list(found_cases.problems)
    cases = [case for case in found_cases.cases if _is_usable(case, problems)]
    if not cases:
        raise InputError(f"{data}: no case for a bank", *(str(problem) for problem in problems))
    classes = _common_classes(cases, say)
    modalities = options.modalities or tuple(
        name for name in MODALITIES if all(name in LAYOUTS[case.layout].modalities for case in cases)
    )
    settings = Settings(modalities, classes, options.percentiles, n4=options.n4, resample=options.resample)
    _make_folder(bank)
    tasks = [
        EntryTask(case, bank, settings, threads=2 if workers == 1 and cluster is None else 1)
        for case in cases
    ]
    together: Literal["alone", "shared"] = "alone" if step == 1 else "shared"
    with lock(bank / _BUILD_LOCK, holders=together), lock(bank / f".part-{first}-of-{step}.lock"):
        if not options.rebuild:
            _check_unchanged(bank, settings, n_folds=options.n_folds, seed=options.seed)
        own_tasks = tasks[first - 1 :: step]
        todo = [
            task
            for task in own_tasks
            if (entry := find_entry(task)) is None or (options.rebuild and is_damaged(task, entry))
        ]
        check_disk(todo, say)
        if todo:
            unlist(bank)
        made = run_tasks(write_entry, todo, workers=workers, label="preprocess", cluster=cluster)
        with closing(made) as outcomes:
            results = [_result(outcome) for outcome in outcomes]
        problems += [problem for result in results for problem in result.problems]
        missing = assemble(tasks, settings, problems, n_folds=options.n_folds, seed=options.seed)
    done = {result.case_id for result in results if not result.refused}
    started = {task.case.id for task in todo}
    ids = [task.case.id for task in own_tasks]
    return BuildReport(
        tuple(case for case in ids if case in done),
        tuple(case for case in ids if case not in started),
        tuple(problems),
        missing,
        classes,
    )


def _is_usable(case: Case, problems: list[Problem]) -> bool:
    if case.label is None:
        problems.append(
            Problem(
                "error",
                case.id,
                str(case.folder),
                "no label",
                "an annotated case; segment this one with `brats-seg predict`",
            )
        )
    elif Path(case.id).name != case.id or case.id.startswith("."):
        problems.append(
            Problem(
                "error",
                case.id,
                str(case.folder),
                "its id cannot name a folder",
                "an id without '/' or a leading '.'",
            )
        )
    elif untold := untold_schema(case):
        problems.append(untold)
    else:
        return True
    return False


def _common_classes(cases: Sequence[Case], say: Callable[[str], None]) -> tuple[str, ...]:
    schemas = sorted({case.schema for case in cases})
    classes = common_classes(SCHEMAS[name] for name in schemas)
    finer = [name for name in schemas if len(SCHEMAS[name].values) > len(classes)]
    if MERGED in classes and finer:
        merging = ", ".join(name for name in schemas if MERGED in SCHEMAS[name].values.values())
        say(
            f"{', '.join(finer)} has more tissue classes than {merging or 'the other cases'}: the bank "
            f"keeps {', '.join(classes)}"
        )
    say(f"{len(cases)} cases, {len(classes)} tissue classes: {', '.join(classes)}")
    return classes


def _make_folder(bank: Path) -> None:
    if bank.is_dir() and not is_bank(bank):
        # a build that was killed before its first case leaves only these files
        names = {path.name for path in bank.iterdir() if not path.name.startswith(TOKEN)}
        if not names <= {"cases", _BUILD_LOCK} or any((bank / "cases").glob("*")):
            raise InputError(f"{bank}: is not empty and is not a bank; give an empty or new folder")
    (bank / "cases").mkdir(parents=True, exist_ok=True)


def _check_unchanged(bank: Path, settings: Settings, *, n_folds: int, seed: int) -> None:
    """Raise `UsageError` if a finished bank has other settings or folds than this build."""
    try:
        listing, folds = read_listing(bank), read_json(bank / "folds.json")
        have = read_settings(bank, listing.cases[0].id)
        n_have, seed_have = len(folds["folds"]), folds["seed"]
    except (InputError, LookupError, TypeError):
        return  # not finished, or damaged: this build writes the files again
    pairs = []
    if have is not None:
        ours = settings.to_dict()
        pairs = [
            (_setting_words(name, have.get(name)), _setting_words(name, ours[name]))
            for name in ours
            if have.get(name) != ours[name]
        ]
    if (n_have, seed_have) != (min(n_folds, len({case.patient for case in listing.cases})), seed):
        pairs.append((f"--folds {n_have} --seed {seed_have}", f"--folds {n_folds} --seed {seed}"))
    if pairs:
        was, wanted = (" ".join(words) for words in zip(*pairs, strict=True))
        raise UsageError(
            f"{bank}: this bank is finished, with {was}; this command asks for {wanted}; "
            "give the bank's own settings, or another folder, or --rebuild to change this bank"
        )


def _setting_words(name: str, value: Any) -> str:
    """A setting as written on the command line, or by its name."""
    if name in ("n4", "resample"):
        return f"--{name}" if value else f"no --{name}"
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"--{name} {words}" if name == "percentiles" else f"{name.replace('_', ' ')} {words}"


def _result(outcome: Outcome[EntryTask, EntryResult]) -> EntryResult:
    """The outcome of a task, also if its worker died or an unexpected error occurred."""
    if outcome.value is not None:
        return outcome.value
    error, case, bank = outcome.error, outcome.task.case, outcome.task.bank
    if (
        isinstance(error, OSError)
        and not outcome.died
        and (error.filename is None or Path(error.filename).is_relative_to(bank))
    ):
        # every further case would fail with the same error
        why = "the disk is full" if is_disk_full(error) else f"cannot be written ({error.strerror})"
        raise InputError(f"{bank}: {why} at {case.id}; correct this and start again; finished cases are kept")
    problem = Problem(
        "error",
        case.id,
        str(case.folder),
        f"could not be prepared: {type(error).__name__}: {' '.join(str(error).split())}",
        "a worker that finishes the case; a new build tries this case again",
    )
    refuse(outcome.task, [problem])
    return EntryResult(case.id, (problem,))
