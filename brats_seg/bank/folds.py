"""Patients -> folds."""

from collections.abc import Mapping, Sequence

import numpy as np

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.groups import grouped


def telling_class(classes: Sequence[str]) -> int:
    """Index of the class whose presence is spread evenly over folds: the enhancing core, or the last class of
    a task without one.
    """
    return list(classes).index("enhancing_core") if "enhancing_core" in classes else len(classes) - 1


def make_folds(
    patient_of: Mapping[str, str], has_enhancing: Mapping[str, bool], *, n_folds: int, seed: int
) -> tuple[tuple[str, ...], ...]:
    """Distribute cases over folds: a patient's cases stay together, and each fold gets its part of the
    patients with enhancing tumor.

    Patients are shuffled, and those with the most cases come first. Each goes to the fold with the fewest
    patients of the same kind (with or without enhancing tumor); among equal folds, to the one with the fewest
    cases. The order of the given cases does not matter.

    Args:
        patient_of: case id -> patient.
        has_enhancing: case id -> whether it has enhancing tumor.
        n_folds: number of folds; fewer are made if there are fewer patients.
        seed: of the shuffle.

    Raises:
        UsageError: `n_folds` below 1.
    """
    if n_folds < 1:
        raise UsageError(f"n_folds is {n_folds}; it must be 1 or more")
    groups = _by_patient(patient_of)
    kinds = {patient: any(has_enhancing[case] for case in cases) for patient, cases in groups.items()}
    folds: list[list[str]] = [[] for _ in range(min(n_folds, len(groups)))]
    n_of_kind = np.zeros((len(folds), 2), np.int64)
    for patient in sorted(_shuffled(groups, seed), key=lambda p: -len(groups[p])):
        kind = int(kinds[patient])
        fold = min(range(len(folds)), key=lambda i: (n_of_kind[i, kind], len(folds[i]), i))
        folds[fold] += groups[patient]
        n_of_kind[fold, kind] += 1
    return tuple(tuple(sorted(fold)) for fold in folds)


def inner_split(
    patient_of: Mapping[str, str], has_enhancing: Mapping[str, bool], *, fraction: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the training cases by patient for validation: returns (cases to train on, inner cases).

    The inner cases are the given fraction of the patients, at least one. Patients with enhancing tumor are
    included in their proportion: at least one if two or more have it, because otherwise the active region has
    no score.

    Args:
        patient_of, has_enhancing: as in `make_folds`, for the training cases only.
        fraction: share of the patients for the inner part, 0 to 1.
        seed: of the shuffle.

    Raises:
        InputError: there is only one patient, who cannot be in both parts.
    """
    groups = _by_patient(patient_of)
    if len(groups) < 2:
        raise InputError(f"the training cases have {len(groups)} patient; an inner split needs two or more")
    order = _shuffled(groups, seed)
    having = [patient for patient in order if any(has_enhancing[case] for case in groups[patient])]
    n_inner = min(max(1, round(fraction * len(groups))), len(groups) - 1)
    n_having = min(max(int(len(having) > 1), round(n_inner * len(having) / len(groups))), n_inner)
    others = [patient for patient in order if patient not in having]
    inner = set(having[:n_having] + others[: n_inner - n_having])
    inner |= set(having[n_having : n_having + n_inner - len(inner)])
    cases = sorted(patient_of)
    return tuple(c for c in cases if patient_of[c] not in inner), tuple(
        c for c in cases if patient_of[c] in inner
    )


def _by_patient(patient_of: Mapping[str, str]) -> dict[str, list[str]]:
    return grouped(sorted(patient_of), lambda case: patient_of[case])


def _shuffled(groups: Mapping[str, Sequence[str]], seed: int) -> list[str]:
    patients = sorted(groups)
    return [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
