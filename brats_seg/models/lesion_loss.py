"""Dice and cross-entropy of each lesion separately, so that a small lesion counts as much as a large
lesion.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from brats_seg.core.shapes import Ids
from brats_seg.core.tensors import Logits, PerExample

ByLesion = Literal["blob", "components"]
DICE_SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice fraction, as in MONAI and nnU-Net, so that a class that is
absent from patch and prediction has a value.
"""


ClassNumbers = Int64[Tensor, "b *patch"]
"""Class of each voxel of a batch."""
Voxels = Bool[Tensor, "b *patch"]
"""Some voxels of a batch."""
TumorMasks = Bool[np.ndarray, "b *patch"]
Regions = Int64[np.ndarray, "b *patch"]
"""Number of the region of each voxel, unique over the batch."""


def lesion_loss(logits: Logits, classes: ClassNumbers, counted: Voxels | None, *, by: ByLesion) -> PerExample:
    """Binary cross-entropy plus 1 - soft Dice of tumor against healthy, in a region for each lesion.

    A lesion is a connected component of the reference tumor (all classes except the first) in the patch.
    Voxels that share a face, an edge or a corner are connected. The lesions are found on the CPU, once in
    each call, and have no gradient.

    Args:
        logits: (B, K, *patch); class 0 is healthy.
        classes: class numbers of the reference.
        counted: voxels that count; None for all voxels.
        by: 'components': the region of a lesion is all voxels nearer to it than to any other lesion
            (CC-DiceCE, Bouteille et al. 2025, on the regions of CC-Metrics, Jaus et al. 2024). The regions
            fill the patch; without a lesion the patch is one region. 'blob': the region of a lesion is the
            patch without the other lesions (blob loss, Kofler et al. 2023). Without a lesion the loss is 0.

    Returns:
        The mean over the lesions of each example.
    """
    regions, example_of = (
        torch.from_numpy(a).to(logits.device, non_blocking=True)
        for a in number_regions(classes.to(torch.uint8).cpu().numpy() > 0, by=by)
    )
    tumor = classes > 0
    evidence = torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]
    entropy = F.binary_cross_entropy_with_logits(evidence, tumor.to(evidence.dtype), reduction="none")
    p = torch.sigmoid(evidence)
    of_voxels = torch.stack([p * tumor, p + tumor, entropy, torch.ones_like(p)])
    if counted is not None:
        of_voxels = of_voxels * counted
    # In float64: a float32 sum of two million small numbers stops growing.
    n_examples = len(classes)
    sums = of_voxels.new_zeros((4, n_examples + len(example_of)), dtype=torch.float64)
    sums = sums.index_add(1, regions.ravel(), of_voxels.flatten(1).double())
    around, of_lesions = sums[:, :n_examples], sums[:, n_examples:]
    if by == "blob":
        of_lesions = of_lesions + around[:, example_of]
    both, either, entropy_sum, n_voxels = of_lesions
    losses = 1 - (2 * both + DICE_SMOOTH) / (either + DICE_SMOOTH) + entropy_sum / n_voxels.clamp(min=1)
    totals, n_lesions = (
        losses.new_zeros(n_examples).index_add(0, example_of, v) for v in (losses, torch.ones_like(losses))
    )
    return (totals / n_lesions.clamp(min=1)).to(logits.dtype)


def number_regions(tumor: TumorMasks, *, by: ByLesion) -> tuple[Regions, Ids]:
    """The region of each voxel, and the example of each lesion.

    Region i < B holds the voxels of example i that belong to no lesion. The regions of the lesions follow in
    the order of the examples.
    """
    regions = np.empty(tumor.shape, np.int64)
    example_of: list[int] = []
    for example, mask in enumerate(tumor):
        lesions, n = label(mask, np.ones((3,) * mask.ndim))
        if by == "components":
            lesions, n = _nearest(lesions, n), max(n, 1)
        regions[example] = np.where(lesions > 0, len(tumor) + len(example_of) - 1 + lesions, example)
        example_of += [example] * n
    return regions, np.array(example_of, np.int64)


def _nearest(lesions: np.ndarray, n: int) -> np.ndarray:
    """The number of the nearest lesion of each voxel, by Euclidean distance in voxels; 1 everywhere if there
    is at most one lesion.
    """
    if n <= 1:
        return np.ones_like(lesions)
    return lesions[tuple(distance_transform_edt(lesions == 0, return_distances=False, return_indices=True))]
