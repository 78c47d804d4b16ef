"""The rules a score can follow, by name; what an empty region scores is said here alone."""

from brats_seg.core.errors import UsageError
from brats_seg.evaluation.table import NAN, Convention

CONVENTIONS: dict[str, Convention] = {
    c.name: c
    for c in (
        Convention(
            "brats2013", "Menze et al. 2015: empty regions are left out", "directed", NAN, NAN, 0.0, NAN
        ),
        # 373.12866 mm is the diagonal of a BraTS image of 240 x 240 x 155 mm
        Convention(
            "brats2020",
            "Empty regions as on the BraTS 2017-2021 leaderboards; HD95 the larger directed percentile, as "
            "MONAI",
            "directed",
            1.0,
            0.0,
            0.0,
            373.12866,
        ),
        Convention(
            "brats2020_pooled_hd95",
            "Empty regions as on the BraTS 2017-2021 leaderboards; HD95 of both directions together, as "
            "MedPy",
            "pooled",
            1.0,
            0.0,
            0.0,
            373.12866,
        ),
        Convention(
            "brats2023",
            "Saluja et al., BraTS 2023 lesion-wise metrics",
            "surface_weighted",
            1.0,
            0.0,
            0.0,
            374.0,
            lesion_wise=True,
            headline=("lesion_dice", "lesion_hd95_mm", "dice"),
        ),
        Convention(
            "nnunet", "nnU-Net: empty in both is not a number; HD95 as MedPy", "pooled", NAN, NAN, 0.0, NAN
        ),
    )
}
"""The rules a score can follow, by name."""


def convention_named(name: str) -> Convention:
    """The convention of that name. Raises `UsageError` with the choices."""
    if name not in CONVENTIONS:
        raise UsageError(f"--convention {name}: unknown; the conventions are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
