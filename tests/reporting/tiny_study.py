"""Four tiny cases with predictions of known errors, and a run folder of two epochs."""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (30, 26, 12)  # native x, y, z
MODALITIES = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Study:
    """Where the folders are. Values of the labels: 1 necrotic or non-enhancing, 2 edema, 4 enhancing."""

    reference: Path
    predictions: Path
    run: Path
    cases: tuple[str, ...]


def write_nifti(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])).to_filename(path)


def tumor(*, enhancing: bool) -> np.ndarray:
    """A block of 8 x 8 x 4 edema around 4 x 4 x 4 core, half of it enhancing or all of it not."""
    label = np.zeros(SHAPE, np.uint8)
    label[10:18, 8:16, 4:8] = 2
    label[12:16, 10:14, 4:8] = 1
    if enhancing:
        label[12:16, 10:14, 6:8] = 4
    return label


def scans(seed: int) -> dict[str, np.ndarray]:
    """A box of brain with air around it."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[4:26, 4:22, 1:11] = True
    return {m: np.where(brain, rng.integers(100, 900, SHAPE), 0).astype(np.int16) for m in MODALITIES}


def make_study(root: Path) -> Study:
    """Four cases: 0 is predicted right, 1 lacks the edema of a slice, 2 and 3 have no enhancing tumor, but 16
    voxels are found in 3.
    """
    cases = tuple(f"BraTS2021_0000{i}" for i in range(4))
    for i, case in enumerate(cases):
        reference = tumor(enhancing=i < 2)
        prediction = reference.copy()
        if i == 1:
            prediction[:, :, 7] = np.where(reference[:, :, 7] == 2, 0, reference[:, :, 7])
        if i == 3:
            prediction[12:16, 10:14, 7] = 4
        for modality, scan in scans(i).items():
            write_nifti(root / "scans" / case / f"{case}_{modality}.nii.gz", scan)
        write_nifti(root / "scans" / case / f"{case}_seg.nii.gz", reference)
        write_nifti(root / "out" / f"{case}.nii.gz", prediction)
    table = ["case,file,schema,seconds,warnings"]
    for case, warning in zip(cases[:2], ("", '"t1n saturated, 12 voxels"'), strict=True):
        table.append(f"{case},{case}.nii.gz,brats2017,1.0,{warning}")
    (root / "out" / "predictions.csv").write_text("\n".join(table) + "\n")
    return Study(root / "scans", root / "out", write_run(root / "run"), cases)


def write_run(folder: Path) -> Path:
    """Two epochs, two classes: 100 draws each an epoch, of 100 healthy and 40 enhancing voxels."""
    folder.mkdir()
    epochs = (
        "epoch,step,lr,loss,dice_whole,dice_core,dice_active,score,is_best",
        "1,10,0.1,0.9,,,,,0",
        "2,20,0.05,0.5,0.7,0.6,0.4,0.57,1",
    )
    (folder / "epochs.csv").write_text("\n".join(epochs) + "\n")
    rows = ["epoch,class,requested_share,center_share,voxel_share,n_draws,n_distinct,n_hard"]
    for epoch in (1, 2):
        rows += [
            f"{epoch},healthy,0.5,0.5,0.8,100,100,0",
            f"{epoch},enhancing_core,0.5,0.5,0.2,100,40,7",
            f"{epoch},outside,0,0,0.25,0,0,0",
        ]
    (folder / "ledger.csv").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text("sampler: {kind: balanced}\n")
    return folder
