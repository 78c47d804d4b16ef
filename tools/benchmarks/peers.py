"""How others draw class-balanced patches, each at its best: cached indices, no deep copies, rows contiguous
in memory.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchio
from monai.data import CacheDataset, DataLoader
from monai.transforms import ClassesToIndicesd, Compose, EnsureTyped, RandCropByLabelClassesd, SelectItemsd
from torch.utils.data import RandomSampler

from brats_seg.bank.bank import PatchBank

Batches = Callable[[], object]
ENDLESS = 10**7


def volumes_of(bank: PatchBank) -> list[tuple[np.ndarray, np.ndarray]]:
    """Image float32 (M, Z, Y, X) and label uint8 (Z, Y, X) of every case, in memory: the same brain crops
    that we use.
    """
    pairs = [bank.volume(case) for case in range(len(bank.cases))]
    return [
        (np.ascontiguousarray(np.moveaxis(image, -1, 0), dtype=np.float32), np.array(label))
        for image, label in pairs
    ]


def monai_batches(
    volumes: list[tuple[np.ndarray, np.ndarray]], *, n_classes: int, workers: int, from_cases: int
) -> Batches:
    """MONAI's RandCropByLabelClassesd: 120 / `from_cases` patches of 1x64x64 from each of `from_cases` cases
    a batch, balanced.
    """
    crop = RandCropByLabelClassesd(
        keys=["image", "label"],
        label_key="label",
        spatial_size=(1, 64, 64),
        ratios=[1] * n_classes,
        num_classes=n_classes,
        num_samples=120 // from_cases,
        indices_key="label_cls_indices",
        warn=False,
    )
    steps = [
        EnsureTyped(["image", "label"], track_meta=False),
        ClassesToIndicesd("label", num_classes=n_classes),
        crop,
    ]
    items = [
        {"image": torch.from_numpy(image), "label": torch.from_numpy(label)[None]} for image, label in volumes
    ]
    cached = CacheDataset(
        items, Compose([*steps, SelectItemsd(["image", "label"])]), progress=False, copy_cache=False
    )
    order = RandomSampler(cached, replacement=True, num_samples=ENDLESS)
    loader = DataLoader(cached, batch_size=from_cases, sampler=order, num_workers=workers)
    return iter(loader).__next__


def torchio_batches(volumes: list[tuple[np.ndarray, np.ndarray]], *, n_classes: int, workers: int) -> Batches:
    """TorchIO's LabelSampler and Queue: 12 patches from each case, balanced, batches of 120."""
    subjects = [
        torchio.Subject(
            image=torchio.ScalarImage(tensor=torch.from_numpy(image)),
            label=torchio.LabelMap(tensor=torch.from_numpy(label)[None]),
        )
        for image, label in volumes
    ]
    sampler = torchio.LabelSampler(
        patch_size=(1, 64, 64), label_name="label", label_probabilities=dict.fromkeys(range(n_classes), 1)
    )
    queue = torchio.Queue(
        torchio.SubjectsDataset(subjects),
        max_length=240,
        samples_per_volume=12,
        sampler=sampler,
        num_workers=workers,
        verbose=False,
    )
    loader = torchio.SubjectsLoader(queue, batch_size=120, num_workers=0)

    def forever() -> Iterator[object]:
        while True:
            yield from loader

    return forever().__next__


def crop_loop_batches(
    volumes: list[tuple[np.ndarray, np.ndarray]], *, n_classes: int, lean: bool = False
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """A plain loop over crops as nnU-Net's loader has it: up to 10,000 known places a class and case; load
    the slice, crop, pad, stack.

    `lean` crops before it copies, and draws from a Generator.
    """
    rng = np.random.default_rng(0)
    choose = rng.integers if lean else np.random.choice
    places = []
    for _, label in volumes:
        found = [np.argwhere(label == k) for k in range(n_classes)]
        places.append([at[rng.choice(len(at), min(10_000, len(at)), replace=False)] for at in found])

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        data, segmentation = np.zeros((120, 4, 64, 64), np.float32), np.zeros((120, 64, 64), np.int16)
        for j in range(120):
            case, k = choose(len(volumes)), choose(n_classes)
            image, label = volumes[case]
            z, y, x = places[case][k][choose(len(places[case][k]))]
            plane = image[:, z] if lean else np.copy(image[:, z])
            first = [int(y) - 32, int(x) - 32]
            size = label.shape[1:]
            low, high = [max(0, f) for f in first], [min(n, f + 64) for n, f in zip(size, first, strict=True)]
            pad = [(max(0, -f), max(0, f + 64 - n)) for n, f in zip(size, first, strict=True)]
            data[j] = np.pad(plane[:, low[0] : high[0], low[1] : high[1]], ((0, 0), *pad))
            segmentation[j] = np.pad(label[z, low[0] : high[0], low[1] : high[1]], pad, constant_values=255)
        return torch.from_numpy(data), torch.from_numpy(segmentation)

    return batch


def byte_copy(bank: PatchBank, *, n_voxels: int) -> Batches:
    """The limit: as many voxels, float16 to float32, and their labels, from one random stretch of the bank,
    by torch's copy.
    """
    pairs = [
        tuple(torch.from_numpy(array.reshape(-1)) for array in bank.volume(case))
        for case in range(len(bank.cases))
    ]
    channels = len(bank.modalities)
    inputs, targets = torch.empty(n_voxels * channels), torch.empty(n_voxels, dtype=torch.uint8)
    rng = np.random.default_rng(0)

    def batch() -> None:
        image, label = pairs[rng.integers(len(pairs))]
        first = int(rng.integers(len(label) - n_voxels))
        inputs.copy_(image[first * channels : (first + n_voxels) * channels])
        targets.copy_(label[first : first + n_voxels])

    return batch
