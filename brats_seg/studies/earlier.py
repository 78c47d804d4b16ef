"""Runs that another machine or an earlier version finished (`--known`), and folders of an earlier version,
which are refused.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from brats_seg.bank.bank import PatchBank
from brats_seg.core.augmentation import Augment
from brats_seg.core.config import Config
from brats_seg.core.errors import InputError
from brats_seg.core.files import read_json
from brats_seg.evaluation.run_rows import DIGEST, LOOK_COLUMNS, Row, read_finished, write_rows
from brats_seg.scans.labels import regions_of
from brats_seg.studies.grid import digest_of
from brats_seg.studies.run_job import SCHEMA, RunJob, looks_file
from brats_seg.studies.strategies import laid_over

DEFAULTS_OF_SCHEMA_1: Mapping[str, Any] = {"hard.recycle": True, "hard.subset": None}
"""The old values of the defaults that have changed since schema 1. The default of each knob that was added
later keeps the behavior of schema 1.
"""


def check_schema(out: Path) -> None:
    """Refuse a folder whose digests have another schema."""
    path = out / "grid.json"
    identity = read_json(path) if path.exists() else {"schema": SCHEMA}
    if isinstance(identity, dict) and identity.get("schema", 1) != SCHEMA:
        raise InputError(
            f"{out}: was written by another version of brats-seg, which named runs in another way; choose a "
            "new folder and take the "
            f"finished runs over with --known {out / 'runs.csv'}"
        )


def digest_of_schema_1(job: RunJob) -> str:
    """The digest that a run had in schema 1."""
    tree = job.tree() | {"configs": [knobs_of_schema_1(tree) for tree in job.trees]}
    del tree["schema"]
    return digest_of(tree)


def knobs_of_schema_1(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a whole config that were not at their defaults in schema 1."""
    # other samplers do not use the `hard` knobs, so these knobs may have their old values
    if tree["sampler"]["kind"] != "hard":
        tree = laid_over(tree, DEFAULTS_OF_SCHEMA_1)
    return _apart(tree, laid_over(Config().model_dump(mode="json"), DEFAULTS_OF_SCHEMA_1))


def _apart(tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a nested mapping that differ from the defaults."""
    apart: dict[str, Any] = {}
    for name, value in tree.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value, default = _apart(value, default), {}
        if name not in defaults or value != default:
            apart[name] = value
    return apart


def known_rows(path: Path, jobs: Sequence[RunJob], banks: Mapping[str, PatchBank]) -> dict[str, list[Row]]:
    """The rows of a runs.csv, by the full digest of their job. Rows that are in the file twice count once.

    Raises:
        InputError: the table does not exist, some rows of a run are missing, or no row belongs to these jobs.
    """
    finished, rows_of_jobs = read_finished(path), {}
    for job in jobs:
        rows = {(row["correct_priors"], row["case"], row["region"]): row for row in rows_of(job, finished)}
        if not rows:
            continue
        bank = banks[job.data]
        cases = job.scored(job.split(bank))
        wanted = set(product(job.correct_priors, cases, (*regions_of(bank.classes), *bank.classes)))
        if set(rows) != wanted:
            raise InputError(
                f"{path}: {len(wanted - set(rows))} of the {len(wanted)} rows of {job.key} are missing; "
                "leave out the rest"
            )
        rows_of_jobs[job.digest] = list(rows.values())
    if not rows_of_jobs:
        banks_of_file, own_banks = (
            {row["bank"] for rows in finished.values() for row in rows},
            {bank.digest[:DIGEST] for bank in banks.values()},
        )
        was = ", ".join(f"{knob}={json.dumps(value)}" for knob, value in DEFAULTS_OF_SCHEMA_1.items())
        others = (
            f"the same bank with other knobs or seeds (before schema {SCHEMA} the defaults were {was}, and "
            "runs with "
            "rotated or scaled patches are to be made again: such patches had air in their corners)"
            if banks_of_file & own_banks
            else f"bank {', '.join(sorted(banks_of_file)) or 'none'}"
        )
        raise InputError(
            f"{path}: none of its {len(finished)} runs is one of this experiment's, on bank "
            f"{', '.join(sorted(own_banks))}; they are of {others}"
        )
    return rows_of_jobs


def take_looks(path: Path, jobs: Sequence[RunJob], out: Path) -> None:
    """Copy the rows of these jobs from a looks.csv. Raises `InputError` if a job has no rows there."""
    finished = read_finished(path, columns=LOOK_COLUMNS)
    for job in jobs:
        rows = finished.get(job.digest[:DIGEST])
        if not rows:
            raise InputError(
                f"{path}: has no rows of {job.key}, but runs.csv in the same folder has them; leave it out"
            )
        looks_file(out, job).parent.mkdir(parents=True, exist_ok=True)
        write_rows(looks_file(out, job), rows, columns=LOOK_COLUMNS)


def looks_of(out: Path, job: RunJob) -> list[Row]:
    """Rows of looks.csv of a finished run; an empty list if the folder of the run was deleted."""
    if not looks_file(out, job).exists():
        return []
    return read_finished(looks_file(out, job), columns=LOOK_COLUMNS)[job.digest[:DIGEST]]


def rows_of(job: RunJob, finished: Mapping[str, list[Row]]) -> list[Row]:
    """The rows of a run, found by its digest or by its digest in schema 1.

    A run of schema 1 with rotated or scaled patches is not used: its patches had air in their corners.
    """
    rows = finished.get(job.digest[:DIGEST], [])
    if rows or any(_moves_patches(config.augment) for config in job.configs):
        return rows
    return finished.get(digest_of_schema_1(job)[:DIGEST], [])


def _moves_patches(augment: Augment) -> bool:
    turns = augment.rotate_degrees > 0 or augment.scale != (1.0, 1.0)
    return turns and augment.affine_probability > 0
