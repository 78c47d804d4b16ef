"""Data sets of empty files: finding cases goes by names alone."""

from pathlib import Path

from brats_seg.scans.case import MODALITIES
from brats_seg.scans.labels import SCHEMAS

VSD = {"t1n": "MR_T1", "t1c": "MR_T1c", "t2w": "MR_T2", "t2f": "MR_Flair"}
OLD = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair", "label": "seg"}
UCSF = {"t1n": "T1", "t1c": "T1c", "t2w": "T2", "t2f": "FLAIR", "label": "tumor_segmentation"}
UPENN = {"t1n": "T1", "t1c": "T1GD", "t2w": "T2", "t2f": "FLAIR", "label": "segm"}
NEW = {name: name for name in MODALITIES} | {"label": "seg"}


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def named(folder, case_id, names=OLD, *, joint="_", suffix=".nii.gz"):
    for name in names.values():
        touch(folder / case_id / f"{case_id}{joint}{name}{suffix}")


def vsd(folder, *, label):
    for number, name in enumerate(VSD.values()):
        touch(folder / f"VSD.Brain.XX.O.{name}.{number}" / f"VSD.Brain.XX.O.{name}.{number}.mha")
    touch(folder / label / f"{label}.77.mha")


def one(found):
    assert not found.problems
    assert len(found.cases) == 1
    case = found.cases[0]
    assert tuple(case.modalities) == MODALITIES
    assert case.schema in ("", *SCHEMAS)
    return case
