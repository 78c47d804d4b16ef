"""Score tables of several predictions -> their ranking, as the BraTS challenge makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy import stats

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import read_table
from brats_seg.evaluation.conventions import CONVENTIONS, convention_named
from brats_seg.evaluation.table import METRICS, Convention

_VOXELS = ("n_reference_vox", "n_prediction_vox")
_RESAMPLES = 10_000

Ranks = Float64[np.ndarray, "cases sides"]


@dataclass(frozen=True)
class Place:
    """One set of predictions in a ranking.

    Attributes:
        name: of the table.
        mean_rank: over cases, regions and metrics; 1 is best.
        place: from 1; equal mean ranks share a place.
        place_low, place_high: 95 % of the bootstrap places lie between.
        p_to_next: of the permutation test against the next set; None for the last one.
    """

    name: str
    mean_rank: float
    place: int
    place_low: int
    place_high: int
    p_to_next: float | None


@dataclass(frozen=True)
class Ranking:
    """Sets of predictions, best first.

    Attributes:
        places: one for each table.
        n_cases, n_patients: number of cases and patients in the tables.
        n_incomplete: number of cases that at least one table lacks; that table ranks last for such a case.
        convention: whose metrics are ranked.
        metrics: their columns.
    """

    places: tuple[Place, ...]
    n_cases: int
    n_patients: int
    n_incomplete: int
    convention: str
    metrics: tuple[str, ...]


def rank_tables(tables: Mapping[str, Path], *, convention: str | None = None, seed: int = 0) -> Ranking:
    """Rank sets of predictions of the same cases.

    For each case, region and metric the sets are ranked from 1 (best; equal values share the mean of their
    ranks). The ranks of a case are averaged, then those of a patient, then those of all patients: with one
    number for each case, region and metric this order is that of the summed ranks of the challenge (Bakas et
    al. 2018).

    Where a convention gives no number, a correct empty answer (reference and prediction are empty) ranks
    best, and a missed or a false region ranks worst. A case or region that a table lacks ranks worst too.

    Neighbors in the ranking are compared by a permutation test: the ranks of a patient are exchanged between
    the two sets at random, and p is the share of exchanges with a difference at least as large, in either
    direction. Patients are drawn with replacement for the places of the bootstrap.

    Args:
        tables: name -> `scores.csv` that `evaluate` wrote; two or more.
        convention: whose headline metrics are ranked; None for the only convention that all tables have.
        seed: of permutations and bootstrap.

    Raises:
        UsageError: fewer than two tables, or no `convention` and the tables share none or several.
        InputError: a file that is not a table of scores, or tables without a common case.
    """
    if len(tables) < 2:
        raise UsageError("rank: give two or more tables")
    rows = {name: _read(path) for name, path in tables.items()}
    convention = _convention(rows, convention)
    rule = convention_named(convention)
    values = {name: _values(table, rule, path=tables[name]) for name, table in rows.items()}
    cases_of = [{case for case, _, _ in table} for table in values.values()]
    if not set.intersection(*cases_of):
        raise InputError(f"rank: the tables have no case in common under {convention}")
    keys = sorted(set.union(*(set(table) for table in values.values())))
    scores = np.array([[table.get(key, -np.inf) for table in values.values()] for key in keys])
    ranks = stats.rankdata(-scores, axis=1)
    patient_of = {row["case"]: row.get("patient") or row["case"] for table in rows.values() for row in table}
    of_cases, names = _means(ranks, [case for case, _, _ in keys])
    of_patients, patients = _means(of_cases, [patient_of[name] for name in names])
    return Ranking(
        places=_places(tuple(tables), of_patients, seed=seed),
        n_cases=len(names),
        n_patients=len(patients),
        n_incomplete=len(names) - len(set.intersection(*cases_of)),
        convention=convention,
        metrics=rule.headline,
    )


def _read(path: Path) -> list[dict[str, str]]:
    columns, rows = read_table(path)
    if not {"case", "region", "convention", *_VOXELS} <= set(columns):
        raise InputError(
            f"{path}: is not a table of scores; give a scores.csv that `brats-seg evaluate` wrote"
        )
    return rows


def _convention(rows: Mapping[str, Sequence[Mapping[str, str]]], wanted: str | None) -> str:
    shared = set.intersection(*({row["convention"] for row in table} for table in rows.values()))
    if wanted is not None:
        convention_named(wanted)
        if wanted not in shared:
            raise UsageError(f"--convention {wanted}: not in all tables; evaluate with it first")
        return wanted
    shared_conventions = [name for name in CONVENTIONS if name in shared]
    if len(shared_conventions) != 1:
        choices = ", ".join(shared_conventions) or "none: evaluate all with the same convention"
        raise UsageError(f"rank: give one --convention; all tables have {choices}")
    return shared_conventions[0]


def _values(
    rows: Sequence[Mapping[str, str]], rule: Convention, *, path: Path
) -> dict[tuple[str, str, str], float]:
    """(case, region, metric) -> value; larger is better. A missing value becomes infinity if reference and
    prediction are empty, else minus infinity.
    """
    values = {}
    for row in rows:
        if row["convention"] == rule.name and row["region"] in rule.ranked:
            for metric in rule.headline:
                text = row.get(metric, "")
                try:
                    number = float(text or "nan")
                except ValueError:
                    raise InputError(
                        f"{path}: {row['case']}, {metric} is {text!r}; expected a number"
                    ) from None
                if np.isnan(number):
                    number = np.inf if all(row[column] == "0" for column in _VOXELS) else -np.inf
                elif METRICS[metric].better != "higher":
                    number = -abs(number - METRICS[metric].best)
                values[row["case"], row["region"], metric] = number
    return values


def _means(ranks: Float64[np.ndarray, "rows sides"], owners: Sequence[str]) -> tuple[Ranks, list[str]]:
    names, at = np.unique(np.array(owners), return_inverse=True)
    sums = np.zeros((len(names), ranks.shape[1]))
    np.add.at(sums, at, ranks)
    return sums / np.bincount(at)[:, None], [str(name) for name in names]


def _places(names: Sequence[str], ranks: Ranks, *, seed: int) -> tuple[Place, ...]:
    means = ranks.mean(axis=0)
    order = np.argsort(means, kind="stable")
    places = stats.rankdata(means.round(9), method="min").astype(int)
    drawn = np.random.default_rng(seed).integers(len(ranks), size=(_RESAMPLES // 5, len(ranks)))
    resampled = stats.rankdata(ranks[drawn].mean(axis=1).round(9), axis=1, method="min")
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0, method="nearest").astype(int)
    return tuple(
        Place(
            name=names[side],
            mean_rank=float(means[side]),
            place=int(places[side]),
            place_low=int(low[side]),
            place_high=int(high[side]),
            p_to_next=None if after is None else _p(ranks[:, side], ranks[:, after], seed=seed),
        )
        for side, after in zip(order, [*order[1:], None], strict=True)
    )


def _p(first: Float64[np.ndarray, " cases"], second: Float64[np.ndarray, " cases"], *, seed: int) -> float:
    """Two-sided; for few patients all exchanges are counted."""
    if len(first) < 2:
        return 1.0
    test = stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)
