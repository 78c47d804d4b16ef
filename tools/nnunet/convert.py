"""Scans as nnU-Net reads them, and label maps of nnU-Net as `brats-seg evaluate` reads them.

python tools/nnunet/convert.py to SCANS RAW --held-out CASE [--held-out CASE ...] [--left-out CASE ...]
python tools/nnunet/convert.py back SCANS PREDICTIONS OUT
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from brats_seg.core.errors import InputError
from brats_seg.scans.case import MODALITIES
from brats_seg.scans.labels import from_tissue, schema_named, to_tissue
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume, write_label_map, write_volume

CLASSES = ("healthy", "edema", "necrotic_or_non_enhancing", "enhancing_core")
"""Label 0 to 3 of nnU-Net: the order of its own BraTS data sets."""
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": [3]}
app = typer.Typer()


@app.command()
def to(
    scans: Path,
    raw: Path,
    held_out: Annotated[list[str], typer.Option()],
    left_out: Annotated[list[str] | None, typer.Option()] = None,
) -> None:
    """Write imagesTr and labelsTr, of the held-out cases imagesTs and labelsTs, and dataset.json; nothing of
    the cases that are left out.
    """
    training = []
    for case in find_cases(scans).cases:
        if case.id in (left_out or ()):
            continue
        if case.label is None:
            raise InputError(f"{case.id}: has no label; nnU-Net learns from labels and is scored on them")
        end = "Ts" if case.id in held_out else "Tr"
        training += [case.id] * (end == "Tr")
        for channel, modality in enumerate(MODALITIES):
            volume, geometry = read_volume(case.modalities[modality])
            path = raw / f"images{end}" / f"{case.id}_{channel:04}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_volume(path, volume, geometry, dtype=volume.dtype.name)
        label, geometry = read_volume(case.label)
        path = raw / f"labels{end}" / f"{case.id}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        tissue = to_tissue(label, schema_named(case.schema), CLASSES)
        write_label_map(path, tissue, geometry, dtype="uint8")
    names = {str(channel): modality for channel, modality in enumerate(MODALITIES)}
    about = {"channel_names": names, "labels": REGIONS, "regions_class_order": [1, 2, 3]}
    about |= {"numTraining": len(training), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(about))


@app.command()
def back(scans: Path, predictions: Path, out: Path) -> None:
    """Write each label map of nnU-Net with the values of the release that its case is of."""
    out.mkdir(exist_ok=True)
    for case in find_cases(scans).cases:
        predicted = predictions / f"{case.id}.nii.gz"
        if predicted.exists():
            tissue, geometry = read_volume(predicted)
            values = from_tissue(tissue, schema_named(case.schema), CLASSES)
            write_label_map(out / predicted.name, values, geometry, dtype="uint8")


if __name__ == "__main__":
    app()
