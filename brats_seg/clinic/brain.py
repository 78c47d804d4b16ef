"""The brain mask of a head: a file of the user, or a program for brain extraction that is installed."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_fill_holes

from brats_seg.core.errors import InputError
from brats_seg.core.shapes import Mask, Volume
from brats_seg.scans.check import unstripped_words
from brats_seg.scans.geometry import Geometry, same_grid
from brats_seg.scans.volume import read_volume, write_volume

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "hd-bet": ("-device", "cpu"),
    "mri_synthstrip": (),
}
"""Programs that are looked for, in this order -> what is added to `-i HEAD -o BRAIN`."""


def brain_of(t1c: Volume, geometry: Geometry, *, mask_file: Path | None) -> Mask:
    """The brain on the grid of the scan.

    Args:
        t1c: (Z, Y, X) in LPS.
        geometry: its grid.
        mask_file: a mask of the user on this very grid; None to take the scan itself where its background is
            0, else an installed program.

    Raises:
        InputError: a mask on another grid or without a voxel; a head, and no program; a program that failed.
    """
    if mask_file is not None:
        mask, theirs = read_volume(mask_file)
        if not same_grid(geometry, theirs):
            raise InputError(
                f"{mask_file}: the mask of {theirs.shape} voxels lies on another grid than the T1c of "
                f"{geometry.shape} (Z, Y, X); draw it on the T1c"
            )
        return _checked(mask != 0, mask_file.name)
    if unstripped_words(t1c != 0, spacing_mm=geometry.spacing_mm) is None:
        return _checked(binary_fill_holes(t1c != 0), "the T1c")
    return _extracted(t1c, geometry)


def _checked(mask: Mask, name: str) -> Mask:
    if not mask.any():
        raise InputError(f"{name}: no voxel belongs to the brain; give another --brain-mask")
    return mask


def _extracted(t1c: Volume, geometry: Geometry) -> Mask:
    program = next((name for name in PROGRAMS if shutil.which(name)), None)
    if program is None:
        raise InputError(
            "the T1c shows a head with its skull, and no program for brain extraction is installed; install "
            "HD-BET (hd-bet) or FreeSurfer (mri_synthstrip), or give --brain-mask"
        )
    with tempfile.TemporaryDirectory(prefix="brats-seg-") as scratch:
        head, brain = Path(scratch) / "head.nii.gz", Path(scratch) / "brain.nii.gz"
        write_volume(head, t1c, geometry, dtype=t1c.dtype.name)
        command = [program, "-i", str(head), "-o", str(brain), *PROGRAMS[program]]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if ended.returncode or not brain.is_file():
            said = (ended.stderr or ended.stdout).strip().splitlines() or ["nothing"]
            raise InputError(
                f"{program} ended with {ended.returncode} and said: {said[-1]}; give --brain-mask"
            )
        array, theirs = read_volume(brain)
    if not same_grid(geometry, theirs):
        raise InputError(f"{program} gave a brain on another grid than the T1c; give --brain-mask")
    return _checked(binary_fill_holes(np.asarray(array != 0)), program)
