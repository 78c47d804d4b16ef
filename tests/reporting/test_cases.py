from pathlib import Path

import numpy as np
import pytest
from tiny_study import SHAPE, Study, write_nifti

from brats_seg.core.errors import InputError
from brats_seg.reporting.cases import SeenCase, best_slice, case_pictures, see_case
from brats_seg.scans.case import Case, ScanFile
from brats_seg.scans.layouts import find_cases

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")


def case_of(study: Study, i: int) -> Case:
    return {c.id: c for c in find_cases(study.reference).cases}[study.cases[i]]


def seen(study: Study, i: int) -> SeenCase:
    return see_case(case_of(study, i), study.predictions / f"{study.cases[i]}.nii.gz", CLASSES)


def test_confusion_counts_the_brain(study: Study) -> None:
    confusion = seen(study, 1).confusion()
    assert confusion.sum() == 22 * 18 * 10
    assert confusion[2].tolist() == [
        48,
        0,
        144,
        0,
    ]  # of 64 edema voxels less 16 core, one slice of four is missed
    assert confusion[3].tolist() == [0, 0, 0, 32]


def test_confusion_without_scans_counts_the_image(study: Study) -> None:
    case = case_of(study, 0)
    alone = Case(case.id, case.patient, case.layout, case.schema, {}, case.label, case.folder)
    look = see_case(alone, study.predictions / f"{case.id}.nii.gz", CLASSES)
    assert look.confusion().sum() == np.prod(SHAPE)
    assert case_pictures(look) == ()


def test_the_slice_is_the_one_with_the_most_reference(study: Study) -> None:
    look = seen(study, 0)
    assert best_slice(look) == 4
    empty = np.zeros_like(look.reference)
    predicted = empty.copy()
    predicted[9, 5, 5] = 3
    assert best_slice(SeenCase(look.case, CLASSES, empty, predicted, {}, (1.0, 1.0, 1.0))) == 9
    assert best_slice(SeenCase(look.case, CLASSES, empty, empty, {}, (1.0, 1.0, 1.0))) == 6


def test_pictures_show_the_brain_with_a_margin_and_the_same_slice(study: Study) -> None:
    rows = case_pictures(seen(study, 1))
    assert [row.name for row in rows] == ["FLAIR", "T1c"]
    for row in rows:
        assert [name for name, _ in row.columns] == ["scan alone", "reference", "prediction"]
        assert {picture.shape for _, picture in row.columns} == {(2 * 26, 2 * 30, 3)}
        alone, reference, prediction = (picture for _, picture in row.columns)
        assert np.ptp(alone, axis=2).max() == 0
        line = (reference != prediction).any(axis=2)  # slice 4 is predicted right: the reference's line alone
        assert 0 < line.sum() < line.size / 4
        assert len(np.unique(prediction[line], axis=0)) == 1


def test_a_scan_that_cannot_be_used_is_named_and_left_out(study: Study, tmp_path: Path) -> None:
    case = case_of(study, 0)
    write_nifti(tmp_path / "small.nii.gz", np.ones((4, 4, 4), np.int16))
    (tmp_path / "broken.nii.gz").write_bytes(b"not a scan")
    modalities = dict(case.modalities) | {
        "t2f": ScanFile(tmp_path / "small.nii.gz"),
        "t1c": ScanFile(tmp_path / "broken.nii.gz"),
    }
    changed = Case(case.id, case.patient, case.layout, case.schema, modalities, case.label, case.folder)
    look = see_case(changed, study.predictions / f"{case.id}.nii.gz", CLASSES)
    assert sorted(look.scans) == ["t1n", "t2w"]
    assert len(look.problems) == 2
    assert all(line.startswith(case.id) for line in look.problems)


def test_another_shape_is_refused(study: Study, tmp_path: Path) -> None:
    write_nifti(tmp_path / "small.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(InputError, match="shape"):
        see_case(case_of(study, 0), tmp_path / "small.nii.gz", CLASSES)
