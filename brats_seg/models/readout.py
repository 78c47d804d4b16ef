"""A network's logits -> class probabilities -> classes, as the loss that trained the network defines them."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from brats_seg.core.shapes import TissueMap
from brats_seg.scans.labels import MERGED

Readout = Literal["softmax", "regions"]
"""The meaning of the logits of a network: a softmax over the classes, or a sigmoid for each of whole, core
and active (`loss.kind` 'region').
"""
REGION_CLASSES = ("healthy", MERGED, "edema", "enhancing_core")
"""The classes that the three regions distinguish, in the order of the logits."""


def readout_of(loss_kind: str) -> Readout:
    """The readout of a network that was trained with this `loss.kind`."""
    return "regions" if loss_kind == "region" else "softmax"


def region_logits(logits: Float[Tensor, "b k *patch"]) -> Float[Tensor, "b 3 *patch"]:
    """Logits of whole, core and active, computed from the logits of the four classes (`REGION_CLASSES`):
    differences of neighbors in the order healthy, edema, necrotic or non-enhancing, enhancing (adjacent
    categories; Agresti 2010).
    """
    healthy, merged, edema, enhancing = logits.unbind(1)
    return torch.stack([edema - healthy, merged - edema, enhancing - merged], 1)


def class_probabilities(
    logits: Float[Tensor, "b k *patch"], *, readout: Readout = "softmax"
) -> Float[Tensor, "b k *patch"]:
    """Probabilities of the classes, which sum to 1.

    'regions': P(whole), P(core) and P(active) are the sigmoids of the region logits. Each region contains the
    next, so P(healthy) = 1 - P(whole), P(edema) = P(whole) - P(core), P(enhancing) = P(active) and
    P(necrotic or non-enhancing) = P(core) - P(active). The loss trains the three sigmoids separately, so a
    smaller region may get a higher probability than the region around it. In such voxels the logits are first
    replaced by the nearest logits that do not increase from whole to core to active (isotonic regression;
    Barlow et al. 1972): the logits in conflict get their mean.
    """
    if readout == "softmax":
        return logits.softmax(1)
    whole, core, active = torch.sigmoid(_nested(logits)).unbind(1)
    return torch.stack([1 - whole, core - active, whole - core, active], 1)


def decide(probabilities: Float[np.ndarray, "k z y x"], *, readout: Readout = "softmax") -> TissueMap:
    """The class of every voxel from class probabilities, or from the mean class probabilities of several
    networks.

    'softmax': the most probable class. 'regions': the class with the smallest expected number of wrong
    regions, which means a threshold of one half for P(whole), P(core) and P(active). For one network both
    give the class of the largest logit. For the mean of several networks, 'regions' can give another class
    than the most probable one: with P(healthy) 0.4, P(edema) 0.3 and P(enhancing) 0.3 it gives edema, because
    P(whole) is 0.6 and P(core) 0.3.
    """
    if readout == "softmax":
        return probabilities.argmax(axis=0).astype(np.uint8)
    healthy, merged, _, active = probabilities
    half = np.float32(0.5)
    core = merged + active
    as_edema = half - healthy
    as_merged = as_edema + (core - half)
    right = np.stack([np.zeros_like(active), as_merged, as_edema, as_merged + (active - half)])
    right[
        probabilities == 0
    ] = -np.inf  # two regions of probability one half: the class between them is not meant
    return right.argmax(axis=0).astype(np.uint8)


def _nested(logits: Tensor) -> Tensor:
    """Region logits (B, 3, *patch), replaced by the nearest values (least squares) that do not increase along
    axis 1.

    Value i is the minimum over starts s <= i of the maximum over ends e >= i of the mean from s to e (the
    min-max formula; Barlow et al. 1972). A mean of differences of neighbors is the difference of the two
    outer values, divided by the length.
    """
    healthy, merged, edema, enhancing = logits.unbind(1)
    nested = (healthy, edema, merged, enhancing)

    def mean(start: int, end: int) -> Tensor:
        return (nested[end + 1] - nested[start]) / (end - start + 1)

    highest = [
        [torch.stack([mean(s, e) for e in range(i, 3)]).amax(0) for s in range(i + 1)] for i in range(3)
    ]
    return torch.stack([torch.stack(of_start).amin(0) for of_start in highest], 1)
