"""The disk that a bank will need."""

import shutil
from collections.abc import Callable, Sequence

import numpy as np

from brats_seg.bank.entry import (
    EntryTask,
)
from brats_seg.core.errors import InputError
from brats_seg.scans.case import Case
from brats_seg.scans.volume import read_header, read_volume

_PROBED = 3  # cases whose brain is looked for, to tell the disk a bank needs
_MARGIN = 1.2  # over the largest of them


def disk_needed(cases: Sequence[Case], *, n_modalities: int) -> int:
    """Bytes that cases will take in a bank, from their headers and the brains of a few of them; a case that
    cannot be read takes none.
    """
    n_voxels = []
    for case in cases:
        try:
            z, y, x = read_header(next(iter(case.modalities.values())).path).shape
        except InputError:
            continue
        n_voxels.append(z * y * x)
    bytes_per_voxel = 2 * n_modalities + 1 + 4  # image, label and (of the brain) positions
    return int(sum(n_voxels) * bytes_per_voxel * _brain_share(cases))


def _brain_share(cases: Sequence[Case]) -> float:
    """The largest share of its frame that the brain's box takes in a few cases spread over the data, and a
    margin.
    """
    shares = []
    for case in cases[:: max(1, len(cases) // _PROBED)][:_PROBED]:
        try:
            volume, _ = read_volume(next(iter(case.modalities.values())))
        except InputError:
            continue
        spans = [np.flatnonzero(volume.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        box = [int(span[-1] - span[0] + 1) if span.size else 0 for span in spans]
        shares.append(box[0] * box[1] * box[2] / volume.size)
    return min(1.0, max(shares, default=1.0) * _MARGIN)


def check_disk(todo: Sequence[EntryTask], say: Callable[[str], None]) -> None:
    """Say how much disk the cases need. Raises `InputError` where less is free."""
    if not todo:
        return
    bank = todo[0].bank
    needed = disk_needed([task.case for task in todo], n_modalities=len(todo[0].settings.modalities))
    free = shutil.disk_usage(bank).free
    say(
        f"{len(todo)} cases to prepare; they need about {needed / 1e9:.2f} GB of the {free / 1e9:.1f} GB "
        f"free at {bank}"
    )
    if needed > free:
        raise InputError(
            f"{bank}: {len(todo)} cases need about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; free "
            "some or choose another disk"
        )
