"""Find the examples of each class that are hard for the network."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Counts, Ids
from brats_seg.imbalance.groups import Groups
from brats_seg.imbalance.index import ClassIndex
from brats_seg.inference.dense import slice_logits
from brats_seg.inference.windowed import needs_windows
from brats_seg.models.builders import margin_of
from brats_seg.models.readout import Readout, class_probabilities, decide

_STREAM = 0x312
"""Separates these random numbers from those of the samplers, which use the same seed."""
_VOXELS_AT_ONCE = 240 * 64 * 64
"""240 patches of the usual size, or 3 of 64 x 64 x 64: 240 patches of 64 x 64 x 64 would need 1 GB before the
first layer.
"""

Pool = Int64[np.ndarray, " _"]
"""Example ids of one class."""
Probabilities = Float[np.ndarray, "n k"]
"""Class probabilities of each example, at its center or for the whole image."""


def draw_candidates(
    index: ClassIndex,
    *,
    classes: Sequence[int],
    n_of_class: Counts,
    seed: int,
    epoch: int,
    groups: Groups | None = None,
) -> dict[int, Pool]:
    """Different random ids of each class that the network classifies after an epoch: `n_of_class[c]` ids, or
    all ids if a class has fewer.

    With `groups` the ids are drawn group by group, and an id that is drawn twice counts once, so a few small
    lesions give fewer ids.
    """
    candidates = {}
    for cls in classes:
        key = np.array([seed, _STREAM << 32 | epoch], np.uint64)
        generator = np.random.Generator(
            np.random.Philox(key=key, counter=np.array([0, 0, cls, 0], np.uint64))
        )
        n = int(n_of_class[cls])
        if groups is None or n >= index.counts[cls]:
            candidates[cls] = index.random_ids(cls, n, generator=generator)
        else:
            every = np.full(n, cls, np.int64)
            numbers = np.unique(groups.numbers(every, generator.random(n)))
            candidates[cls] = index.pick(every[: len(numbers)], numbers)
    return candidates


def find_hard(
    network: nn.Module,
    bank: PatchBank,
    *,
    candidates: Mapping[int, Pool],
    threshold: float,
    runtime: Runtime,
    divisor: int = 16,
    readout: Readout = "softmax",
) -> dict[int, Pool]:
    """The candidates of each class that are hard for the network, sorted. Every rank gets all of them.

    A candidate is hard if its center is misclassified, or if its own class has a probability below the
    threshold (with 0, only misclassified candidates are hard). There is no augmentation. The network gets
    whole slices, as in prediction, if this is not slower than one patch for each candidate and the output of
    a voxel does not depend on the size of the input. Otherwise it gets patches.

    Args:
        network: in evaluation mode, on the runtime's device, float32 or bfloat16.
        bank: holds the candidates.
        candidates: ids by class.
        threshold: a probability.
        runtime: its ranks share the cases.
        divisor: the sides of the network's input must be multiples of this number.
        readout: how class probabilities are computed from the logits of the network.
    """
    own = {
        cls: ids[bank.locate(ids)[:, 0] % runtime.world_size == runtime.rank]
        for cls, ids in candidates.items()
    }
    ask = partial(center_probabilities, network, bank, divisor=divisor, readout=readout)
    parts = runtime.gather(hard_among(own, ask, threshold=threshold, readout=readout))
    return {cls: np.sort(np.concatenate([part[cls] for part in parts])) for cls in candidates}


def hard_among(
    candidates: Mapping[int, Pool],
    ask: Callable[[Ids], Probabilities],
    *,
    threshold: float,
    readout: Readout = "softmax",
) -> dict[int, Pool]:
    """The candidates of each class that are hard (`is_hard`), sorted.

    Args:
        candidates: ids by class.
        ask: ids -> class probabilities of each id by the network.
        threshold: a probability.
        readout: how the probabilities were computed.
    """
    ids = np.concatenate([np.empty(0, np.int64), *candidates.values()])
    classes = np.repeat(
        np.array(list(candidates), np.int64), [len(of_class) for of_class in candidates.values()]
    )
    hard = is_hard(ask(ids), classes, threshold=threshold, readout=readout)
    return {cls: np.sort(ids[hard & (classes == cls)]) for cls in candidates}


def is_hard(
    probabilities: Probabilities, classes: Ids, *, threshold: float, readout: Readout = "softmax"
) -> Bool[np.ndarray, " n"]:
    """Whether each example (n,) is hard: the network predicts another class, or gives the own class a
    probability below the threshold.
    """
    own = probabilities[np.arange(len(classes)), classes]
    if readout == "softmax":  # images may have more classes than a label map has numbers
        answers = probabilities.argmax(1)
    else:
        answers = decide(probabilities.T[:, :, None, None], readout=readout)[:, 0, 0]
    return (answers != classes) | (own < threshold)


def center_probabilities(
    network: nn.Module, bank: PatchBank, ids: Ids, *, divisor: int = 16, readout: Readout = "softmax"
) -> Probabilities:
    """Class probabilities at the center voxel of each id, by the faster method (see `find_hard`)."""
    if len(ids) and _slices_are_cheaper(network, bank, ids):
        return _from_slices(network, bank, ids, divisor, readout)
    return _from_patches(network, bank, ids, readout)


def _slices_are_cheaper(network: nn.Module, bank: PatchBank, ids: np.ndarray) -> bool:
    """Whether the slices with the ids have fewer voxels than one patch for each id, and the network accepts
    slices.
    """
    if len(bank.patch_size) != 2 or needs_windows(network):
        return False
    slices = np.unique(bank.locate(ids)[:, :2], axis=0)
    air = 2 * margin_of(network)
    n_voxels = sum(
        (bank.cases[case].shape[1] + air) * (bank.cases[case].shape[2] + air) for case in slices[:, 0]
    )
    return n_voxels <= len(ids) * prod(bank.patch_size)


def _from_slices(
    network: nn.Module, bank: PatchBank, ids: np.ndarray, divisor: int, readout: Readout
) -> np.ndarray:
    probabilities = np.empty((len(ids), len(bank.classes)), np.float32)
    cases, zs, ys, xs = bank.locate(ids).T
    for case in np.unique(cases):
        image, _ = bank.volume(int(case))
        for part, logits in slice_logits(
            network, image, np.unique(zs[cases == case]), divisor=divisor, slices_around=bank.slices_around
        ):
            numbers = np.flatnonzero((cases == case) & np.isin(zs, part))
            slots = np.searchsorted(part, zs[numbers])
            places = (torch.from_numpy(i).to(logits.device) for i in (slots, ys[numbers], xs[numbers]))
            at_centers = logits.permute(0, 2, 3, 1)[tuple(places)].float()
            probabilities[numbers] = class_probabilities(at_centers, readout=readout).cpu().numpy()
    return probabilities


def _from_patches(network: nn.Module, bank: PatchBank, ids: np.ndarray, readout: Readout) -> np.ndarray:
    # The center of a patch is at side // 2. After equal margins are removed, the center is at side // 2 of
    # the smaller patch.
    center = (slice(None), slice(None), *((side - 2 * margin_of(network)) // 2 for side in bank.patch_size))
    like = next(network.parameters(), torch.zeros(0))
    probabilities = [torch.empty(0, len(bank.classes))]
    at_once = max(1, _VOXELS_AT_ONCE // prod(bank.patch_size))
    with torch.inference_mode():
        for start in range(0, len(ids), at_once):
            inputs = bank.batch(ids[start : start + at_once]).inputs.to(like.device, like.dtype)
            probabilities.append(class_probabilities(network(inputs)[center].float(), readout=readout).cpu())
    return torch.cat(probabilities).numpy()
