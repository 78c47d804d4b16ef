"""Phantoms on disk: folder and file names of each BraTS release and of the other known layouts. Data, not
code.

Fields of a template: `n` is the number of the case, from 1; `m` is the modality in the spelling of the
release; `grade` is HGG for a case with enhancing tumor, else LGG (`hl`: HG or LG); `vsd` is a different
number for every file, as in the Virtual Skeleton Database.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from brats_seg.core.files import write_json, write_text
from brats_seg.core.shapes import TissueMap
from brats_seg.core.tables import csv_text
from brats_seg.scans.case import MODALITIES
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.labels import GROSS_TUMOR, SCHEMAS, TISSUES, from_tissue, region_classes
from brats_seg.scans.volume import write_label_map, write_volume


@dataclass(frozen=True)
class PhantomLayout:
    """How a release names its files.

    Attributes:
        schema: key in `labels.SCHEMAS` of its label values.
        folder: template of a case's folder; empty if all cases share one folder.
        scan: template of a modality's path under the root.
        label: template of the label's path.
        names: the release's spelling of t1n, t1c, t2w, t2f; "" for a missing modality.
        many: whether a case has several small tumors.
        label_dtype: number type of the label file; 2023 was released with float masks.
        channels: positions in `MODALITIES` stacked into one 4-D file; empty if each modality has a file.
        index: writes the files of the root folder besides the cases.
    """

    schema: str
    folder: str
    scan: str
    label: str
    names: tuple[str, str, str, str]
    label_dtype: str = "uint8"
    channels: tuple[int, ...] = ()
    index: Callable[[Path, int], None] | None = None
    many: bool = False

    @property
    def tissues(self) -> tuple[str, ...]:
        """The tissue classes its labels can name, cores merged or not."""
        return tuple(SCHEMAS[self.schema].values.values())

    @property
    def drawn(self) -> tuple[str, ...]:
        """The class that an expert draws for each of `labels.TISSUES`: only the core for the gross tumor
        volume.
        """
        if GROSS_TUMOR not in self.tissues:
            return TISSUES
        core = region_classes("core", TISSUES)
        return tuple(GROSS_TUMOR if i in core else "healthy" for i in range(len(TISSUES)))


def write_case(
    out: Path,
    number: int,
    *,
    layout: str,
    modalities: Int16[np.ndarray, "z y x m"],
    tissue: TissueMap,
    enhancing: bool,
) -> Path:
    """Write one case, as int16 scans (1 mm, LPS, the origin of BraTS) and a label map.

    Args:
        out: root of the cohort; created if it does not exist.
        number: number of the case in the cohort, from 1.
        layout: a key of `LAYOUTS`.
        modalities: t1n, t1c, t2w, t2f.
        tissue: indices into `labels.TISSUES`, 255 outside the brain.
        enhancing: chooses the folder if a release sorts by grade.

    Returns:
        The case's folder, or its first scan file if all cases share a folder.
    """
    form = LAYOUTS[layout]
    geometry = make_geometry(tissue.shape, dtype="int16")

    def place(template: str, m: int) -> Path:
        name = form.names[m] if m < len(MODALITIES) else "seg"
        grade = "HGG" if enhancing else "LGG"
        path = out / template.format(n=number, m=name, grade=grade, hl=grade[:2], vsd=54500 + 10 * number + m)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    if form.channels:
        write_volume(place(form.scan, 0), modalities[..., list(form.channels)], geometry, dtype="int16")
    else:
        for m in (m for m in range(len(MODALITIES)) if form.names[m]):
            write_volume(place(form.scan, m), modalities[..., m], geometry, dtype="int16")
    values = from_tissue(tissue, SCHEMAS[form.schema], form.drawn)
    write_label_map(place(form.label, len(MODALITIES)), values, geometry, dtype=form.label_dtype)
    return place(form.folder + "/.", 0) if form.folder else place(form.scan, 0)


def write_index(out: Path, n_cases: int, *, layout: str) -> None:
    """Write the other files of a layout: dataset.json, dataset_description.json or manifest.csv."""
    index = LAYOUTS[layout].index
    if index is not None:
        index(out, n_cases)


def _msd_index(out: Path, n_cases: int) -> None:
    root = out / "Task01_BrainTumour"
    names = [f"BRATS_{n:03d}.nii.gz" for n in range(1, n_cases + 1)]
    tree = {
        "name": "BRATS",
        "description": "Synthetic brain tumors",
        "tensorImageSize": "4D",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "numTraining": n_cases,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }
    write_json(root / "dataset.json", tree)


def _nnunet_index(out: Path, n_cases: int) -> None:
    tree = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        "labels": {"background": 0, "edema": 1, "non_enhancing_and_necrosis": 2, "enhancing": 3},
        "numTraining": n_cases,
        "file_ending": ".nii.gz",
    }
    write_json(out / "Dataset001_BrainTumour" / "dataset.json", tree)


def _bids_index(out: Path, n_cases: int) -> None:
    about = {"Name": "Synthetic brain tumors", "BIDSVersion": "1.9.0"}
    write_json(out / "dataset_description.json", about | {"DatasetType": "raw"})
    generated = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "brats-seg phantom"}]}
    write_json(out / "derivatives" / "segmentation" / "dataset_description.json", about | generated)
    values = "index\tname\n0\tbackground\n1\tnecrotic and non-enhancing core\n2\tedema\n3\tenhancing core\n"
    write_text(out / "derivatives" / "segmentation" / "dseg.tsv", values)
    write_text(
        out / "participants.tsv",
        "participant_id\n" + "".join(f"sub-{n:03d}\n" for n in range(1, n_cases + 1)),
    )


def _manifest(out: Path, n_cases: int) -> None:
    form = LAYOUTS["manifest"]
    columns = ("case", "patient", *MODALITIES, "label", "schema")
    rows = [
        (
            f"case_{n:03d}",
            f"person_{n:03d}",
            *(form.scan.format(n=n, m=name) for name in form.names),
            form.label.format(n=n),
            form.schema,
        )
        for n in range(1, n_cases + 1)
    ]
    write_text(
        out / "manifest.csv", csv_text([dict(zip(columns, row, strict=True)) for row in rows], columns)
    )


_NAMES_2017 = ("t1", "t1ce", "t2", "flair")
_NAMES_2023 = ("t1n", "t1c", "t2w", "t2f")
_NAMES_VSD = ("MR_T1", "MR_T1c", "MR_T2", "MR_Flair")


def _plain(
    schema: str,
    case: str,
    names: tuple[str, str, str, str],
    *,
    joint: str = "_",
    suffix: str = ".nii.gz",
    label_dtype: str = "uint8",
) -> PhantomLayout:
    """A layout with a folder per case whose files repeat its name."""
    stem = f"{case}/{case.rpartition('/')[2]}{joint}"
    return PhantomLayout(
        schema, case, f"{stem}{{m}}{suffix}", f"{stem}seg{suffix}", names, label_dtype=label_dtype
    )


def _since_2023(schema: str, year: str, task: str) -> PhantomLayout:
    """A layout in a folder named by year and task."""
    folder = f"BraTS{year}-{task}-TrainingData/BraTS-{task}-{{n:05d}}-000"
    return _plain(schema, folder, _NAMES_2023, joint="-")


def _vsd(case: str, label: str) -> PhantomLayout:
    """A layout with a folder per file, named like it, from the Virtual Skeleton Database."""
    scan, label = "VSD.Brain.XX.O.{m}.{vsd}", label + ".{vsd}"
    return PhantomLayout(
        "brats2013", case, f"{case}/{scan}/{scan}.mha", f"{case}/{label}/{label}.mha", _NAMES_VSD
    )


LAYOUTS: dict[str, PhantomLayout] = {
    "brats2012": PhantomLayout(
        "brats2012",
        "BRATS_{hl}{n:04d}",
        "BRATS_{hl}{n:04d}/BRATS_{hl}{n:04d}_{m}.mha",
        "BRATS_{hl}{n:04d}/BRATS_{hl}{n:04d}_truth.mha",
        ("T1", "T1C", "T2", "FLAIR"),
    ),
    "brats2013": _vsd("{hl}/{n:04d}", "VSD.Brain_3more.XX.XX.OT"),
    "brats2015": _vsd("{grade}/brats_tcia_pat{n:03d}_0001", "VSD.Brain_3more.XX.O.OT"),
    "brats2017": _plain("brats2017", "{grade}/Brats17_TCIA_{n:03d}_1", _NAMES_2017),
    "brats2018": _plain("brats2017", "{grade}/Brats18_TCIA_{n:03d}_1", _NAMES_2017),
    "brats2019": _plain("brats2017", "{grade}/BraTS19_TCIA_{n:03d}_1", _NAMES_2017),
    "brats2020": _plain("brats2017", "BraTS20_Training_{n:03d}", _NAMES_2017, suffix=".nii"),
    "brats2021": _plain("brats2017", "BraTS2021_{n:05d}", _NAMES_2017),
    "brats2023": _plain("brats2023", "BraTS-GLI-{n:05d}-000", _NAMES_2023, joint="-", label_dtype="float32"),
    "brats2024gli": _plain("brats2024gli", "BraTS-GLI-{n:05d}-100", _NAMES_2023, joint="-"),
    "brats2024ped": _since_2023("brats2024ped", "2024", "PED"),
    "brats2023ped": _since_2023("brats2023", "2023", "PED"),
    "brats2023met": replace(_since_2023("brats2023", "2023", "MET"), many=True),
    "brats2025met": replace(_since_2023("brats2024gli", "2025", "MET"), many=True),
    "bratsmen": _since_2023("brats2023", "2023", "MEN"),
    "bratsssa": _since_2023("brats2023", "2023", "SSA"),
    "bratsgoat": _plain("brats2023", "BraTS-GoAT-{n:05d}", _NAMES_2023, joint="-"),
    "brats2024menrt": PhantomLayout(
        "brats2024menrt",
        "BraTS-MEN-RT-{n:04d}-1",
        "BraTS-MEN-RT-{n:04d}-1/BraTS-MEN-RT-{n:04d}-1_{m}.nii.gz",
        "BraTS-MEN-RT-{n:04d}-1/BraTS-MEN-RT-{n:04d}-1_gtv.nii.gz",
        ("", "t1c", "", ""),
    ),
    "upenn": PhantomLayout(
        "brats2017",
        "images_structural/UPENN-GBM-{n:05d}_11",
        "images_structural/UPENN-GBM-{n:05d}_11/UPENN-GBM-{n:05d}_11_{m}.nii.gz",
        "images_segm/UPENN-GBM-{n:05d}_11_segm.nii.gz",
        ("T1", "T1GD", "T2", "FLAIR"),
    ),
    "ucsf": PhantomLayout(
        "brats2017",
        "UCSF-PDGM-{n:04d}_nifti",
        "UCSF-PDGM-{n:04d}_nifti/UCSF-PDGM-{n:04d}_{m}.nii.gz",
        "UCSF-PDGM-{n:04d}_nifti/UCSF-PDGM-{n:04d}_tumor_segmentation.nii.gz",
        ("T1", "T1c", "T2", "FLAIR"),
    ),
    "msd": PhantomLayout(
        "msd",
        "",
        "Task01_BrainTumour/imagesTr/BRATS_{n:03d}.nii.gz",
        "Task01_BrainTumour/labelsTr/BRATS_{n:03d}.nii.gz",
        ("t1n", "t1c", "t2w", "t2f"),
        channels=(3, 0, 1, 2),
        index=_msd_index,
    ),
    "nnunet": PhantomLayout(
        "msd",
        "",
        "Dataset001_BrainTumour/imagesTr/BRATS_{n:03d}_{m}.nii.gz",
        "Dataset001_BrainTumour/labelsTr/BRATS_{n:03d}.nii.gz",
        ("0000", "0001", "0002", "0003"),
        index=_nnunet_index,
    ),
    "bids": PhantomLayout(
        "brats2023",
        "sub-{n:03d}",
        "sub-{n:03d}/anat/sub-{n:03d}_{m}.nii.gz",
        "derivatives/segmentation/sub-{n:03d}/anat/sub-{n:03d}_dseg.nii.gz",
        ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"),
        index=_bids_index,
    ),
    "manifest": PhantomLayout(
        "brats2023",
        "scans/{n:03d}",
        "scans/{n:03d}/{m}.nii.gz",
        "scans/{n:03d}/label.nii.gz",
        _NAMES_2023,
        index=_manifest,
    ),
}
"""Every layout a cohort can be written in, by name."""
