"""Open a bank: its cases, classes and index, and batches of patches."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from brats_seg.bank.gather import (
    Batch,
    PatchMaps,
    ResidentVolumes,
    gather_patches,
    gather_patches_torch,
    make_resident,
    send,
)
from brats_seg.bank.listing import read_folds, read_listing
from brats_seg.bank.mapped import Volumes, map_array
from brats_seg.bank.records import FILES, BankCase
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.shapes import Ids, Image, TissueMap
from brats_seg.imbalance.index import ClassIndex
from brats_seg.scans.grouping import GroupKind, group_classes
from brats_seg.scans.labels import OUTSIDE

_RESIDENT_SHARE = 0.7  # of a device's free memory; the network uses the rest


class PatchBank:
    """A bank with a selection of its cases.

    A voxel id is int64, case number << 32 | flat position in the crop; the case number counts all cases of
    the bank, so an id means the same voxel in every selection. Opening reads only `bank.json`. The file sizes
    of the selected cases are checked by `select`, or at the first batch or volume (for 1,251 cases this takes
    four times as long as opening). The files are mapped at first use.

    Attributes:
        path: folder of the bank.
        patch_size: (Y, X) or (Z, Y, X).
        slices_around: n; a 2-D patch has the n neighboring slices on each side as further channels.
        classes: tissue classes, healthy first; grouped as `regroup` says.
        kind: how the classes are grouped: "all", "healthy_or_tumor" or "tumor".
        modalities: channels, in order.
        spacing_mm: (Z, Y, X).
        normalization: how the intensities were normalized, as plain types.
        cases: all cases of the bank.
        selected: numbers of the selected cases.
        index: voxels of the selected cases by class.
        digest: SHA-256 of `bank.json`, which contains the checksums of all files.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        patch_size: Sequence[int] = (64, 64),
        cases: Sequence[str] | None = None,
        slices_around: int = 0,
    ) -> None:
        """Open a bank.

        Args:
            path: its folder.
            patch_size: voxels, (Y, X) or (Z, Y, X).
            cases: ids of the cases to select; None for all.
            slices_around: n, the number of neighboring slices on each side of a 2-D patch that are further
                channels.

        Raises:
            InputError: no bank, or one of another schema version.
            UsageError: a case that is not in the bank, a patch larger than the volume, or more slices than
                the volume has.
        """
        self.path = Path(path)
        self.patch_size = tuple(patch_size)
        self.slices_around = slices_around
        listing = read_listing(self.path)
        self.digest = listing.digest
        self.modalities = listing.modalities
        self.spacing_mm = listing.spacing_mm
        self.normalization = listing.normalization.model_dump(mode="json")
        self.cases = listing.cases
        self._tissues = listing.classes
        self._listing = listing
        self._sizes_checked = False
        self._number_of = {case.id: i for i, case in enumerate(self.cases)}
        self._device = torch.device("cpu")
        self._resident: ResidentVolumes | None = None
        self._is_resident: bool | None = None  # decided at the first batch
        shapes = np.array([case.shape for case in self.cases], np.int64).reshape(-1, 3)
        self._volumes = Volumes(
            shapes, n_channels=len(self.modalities), load=partial(_map_volumes, self.cases)
        )
        self._every_voxel = ClassIndex(
            self._tissues,
            np.array([case.n_voxels for case in self.cases], np.int64).reshape(-1, len(self._tissues)),
            part=partial(_map_positions, self.cases),
            case_ids=np.arange(len(self.cases), dtype=np.int64) << 32,
            case_names=[case.id for case in self.cases],
        )
        self._group("all")
        self._choose(range(len(self.cases)) if cases is None else self._numbers(cases))

    @property
    def n_channels(self) -> int:
        """Channels of a batch: the modalities of a patch's slice and of each slice around it."""
        return len(self.modalities) * (2 * self.slices_around + 1)

    @property
    def folds(self) -> tuple[tuple[str, ...], ...]:
        """Case ids of each fold. Raises `InputError` if `folds.json` is not the file that the bank was built
        with.
        """
        return read_folds(self.path, self._listing)

    def select(self, case_ids: Sequence[str]) -> "PatchBank":
        """The same bank with other cases selected; mapped files are shared.

        Raises:
            UsageError: a case that is not in the bank.
            InputError: a file of these cases has another size than recorded.
        """
        other = self._copy()
        other._choose(self._numbers(case_ids))
        other._sizes_checked = False
        other._check_sizes()
        return other

    def regroup(self, kind: GroupKind) -> "PatchBank":
        """The same bank and selection with its tissue classes grouped (see `group_classes`); mapped files are
        shared.

        Targets, counts, index and label volumes use the grouped classes; ids mean the same voxels. Classes
        that are left out become 255, as outside the brain. Grouping a grouped bank starts again from the
        tissue classes.

        Raises:
            UsageError: an unknown kind, or too few classes for it.
        """
        other = self._copy()
        other._group(kind)
        other._choose(self.selected)
        return other

    def to(self, device: torch.device | str) -> "PatchBank":
        """The same bank with batches on another device: its selected cases are kept on the device if they
        fit; otherwise batches are copied.
        """
        other = self._copy()
        other._device = torch.device(device)
        return other

    def batch(self, ids: Ids, *, out: Batch | None = None, maps: PatchMaps | None = None) -> Batch:
        """The patches around voxels.

        Args:
            ids: centers, of any cases.
            out: a batch of the same size on the CPU whose tensors are overwritten; None makes new tensors. On
                another device new tensors are always made.
            maps: an affine map for each patch, applied while reading the volumes; None reads each patch
                without a map.

        Raises:
            InputError: an id outside all cases.
            UsageError: `out` has another size, or the number of maps is not the number of ids.
        """
        self._check_sizes()
        if self._device.type == "cpu":
            on_cpu = (
                out if out is not None and out.targets.device.type == "cpu" else self._make_batch(len(ids))
            )
            return self._batch_here(ids, on_cpu, maps)
        if self._is_resident is None:
            self._is_resident = self._fits()
            if self._is_resident:
                self._resident = make_resident(self._volumes, self.selected, device=self._device)
                self._table_there = (
                    None if self._table is None else torch.from_numpy(self._table).to(self._device)
                )
        if self._resident is None or not np.isin(ids >> 32, self.selected).all():
            return self._batch_sent(ids, maps)
        self._volumes.check(ids)
        inputs, targets, counts = gather_patches_torch(
            self._resident,
            ids,
            patch_size=self.patch_size,
            n_classes=len(self.classes),
            table=self._table_there,
            maps=maps,
            slices_around=self.slices_around,
        )
        return Batch(inputs, targets, counts)

    def volume(self, case: int) -> tuple[Image, TissueMap]:
        """Image float16 (Z, Y, X, M) and classes uint8 (Z, Y, X) of a case by its number, read-only.

        Both are mapped; the classes of a grouped bank are computed again at each call.
        """
        if not 0 <= case < len(self.cases):
            raise InputError(f"{self.path}: case number {case}; the bank has 0..{len(self.cases) - 1}")
        self._check_sizes()
        image, tissue = self._volumes.pair(case)
        if self._table is not None:
            tissue = self._table[tissue]
            tissue.flags.writeable = False
        return image, tissue

    def locate(self, ids: Ids) -> Int64[np.ndarray, " n 4"]:
        """Case number and (z, y, x) in its crop of each id."""
        cases, positions = ids >> 32, ids & 0xFFFFFFFF
        _, n_y, n_x = self._volumes.shapes[cases].T
        return np.stack([cases, positions // (n_y * n_x), positions // n_x % n_y, positions % n_x], axis=1)

    def _make_batch(self, n_patches: int, *, pinned: bool = False) -> Batch:
        shape = (n_patches, *self.patch_size)
        inputs = torch.empty((*shape, self.n_channels), pin_memory=pinned).movedim(-1, 1)
        targets = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        return Batch(inputs, targets, np.empty(len(self.classes) + 1, np.int64))

    def _batch_here(self, ids: Ids, out: Batch, maps: PatchMaps | None) -> Batch:
        shape = (len(ids), *self.patch_size)
        if out.targets.shape != shape or out.inputs.shape[1] != self.n_channels:
            raise UsageError(
                f"out holds targets of shape {tuple(out.targets.shape)} and {out.inputs.shape[1]} channels; "
                f"these ids need {shape} and {self.n_channels}"
            )
        gather_patches(
            self._volumes,
            ids,
            patch_size=self.patch_size,
            out=out,
            table=self._table,
            maps=maps,
            slices_around=self.slices_around,
            threads=torch.get_num_threads(),
        )
        return out

    def _batch_sent(self, ids: Ids, maps: PatchMaps | None) -> Batch:
        """Gather on the CPU and copy. torch keeps freed pinned memory, and uses it again after the copy has
        ended.
        """
        here = self._batch_here(ids, self._make_batch(len(ids), pinned=self._device.type == "cuda"), maps)
        inputs, targets = (
            tensor.to(self._device, non_blocking=True) for tensor in (here.inputs, here.targets)
        )
        return Batch(inputs, targets, send(np.asarray(here.counts), self._device))

    def _numbers(self, case_ids: Sequence[str]) -> list[int]:
        unknown = [case for case in case_ids if case not in self._number_of]
        if unknown:
            some = ", ".join(case.id for case in self.cases[:5])
            raise UsageError(
                f"case {unknown[0]} is not in {self.path}; it has {len(self.cases)} cases, such as {some}"
            )
        return [self._number_of[case] for case in case_ids]

    def _choose(self, numbers: Sequence[int]) -> None:
        self.selected = tuple(numbers)
        self.index = self._all.restrict(self.selected)
        self._check_patch_size()

    def _group(self, kind: GroupKind) -> None:
        grouping = group_classes(kind, self._tissues)
        self.kind, self.classes = kind, grouping.classes
        self._table = None if kind == "all" else grouping.table
        self._all = (
            self._every_voxel
            if kind == "all"
            else self._every_voxel.regroup(grouping.classes, grouping.groups)
        )

    def _copy(self) -> "PatchBank":
        other = object.__new__(PatchBank)
        other.__dict__ = dict(self.__dict__)
        other._resident = other._is_resident = None
        return other

    def _check_sizes(self) -> None:
        """Refuse a selected case if a file is missing or has another size; done once. `verify_bank` reads the
        files.
        """
        if self._sizes_checked:
            return
        for case in (self.cases[i] for i in self.selected):
            for name, n_bytes in zip(FILES, case.n_bytes, strict=True):
                file = f"{self.path}/cases/{case.id}/{name}"  # text: 3,753 paths would take 20 ms
                try:
                    found = os.stat(file).st_size
                except OSError:
                    raise InputError(f"{case.id}: {file}: missing; build the bank again") from None
                if found != n_bytes:
                    raise InputError(
                        f"{case.id}: {file}: {found} bytes; it was built with {n_bytes}; build the bank again"
                    )
        self._sizes_checked = True

    def _check_patch_size(self) -> None:
        if len(self.patch_size) not in (2, 3) or min(self.patch_size) < 1:
            raise UsageError(
                f"patch.size {self.patch_size}: give two numbers (Y, X) or three (Z, Y, X), each at least 1"
            )
        grids = np.array([self.cases[i].grid_shape for i in self.selected], np.int64).reshape(-1, 3)[
            :, -len(self.patch_size) :
        ]
        larger = np.flatnonzero((grids < self.patch_size).any(axis=1))
        if larger.size:
            name, limit = self.cases[self.selected[larger[0]]].id, tuple(grids.min(axis=0).tolist())
            raise UsageError(
                f"patch.size {self.patch_size}: larger than the volume of {name}; the largest possible is "
                f"{limit}"
            )
        if self.slices_around:
            self._check_slices()

    def _check_slices(self) -> None:
        n, n_slices = self.slices_around, 2 * self.slices_around + 1
        if n < 0 or len(self.patch_size) != 2:
            raise UsageError(
                f"slices_around {n}: must be 0 or more, and 0 for a 3-D patch; patch.size is "
                f"{self.patch_size}"
            )
        flat = [case for case in (self.cases[i] for i in self.selected) if case.grid_shape[0] < n_slices]
        if flat:
            raise UsageError(
                f"slices_around {n}: {n_slices} slices; the volume of {flat[0].id} has "
                f"{flat[0].grid_shape[0]}"
            )

    def _fits(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self._device)
        n_voxels = int(self._volumes.n_voxels[list(self.selected)].sum())
        return n_voxels * (2 * len(self.modalities) + 1) <= _RESIDENT_SHARE * free

    def __reduce__(
        self,
    ) -> tuple[Callable[..., "PatchBank"], tuple[Path, tuple[int, ...], tuple[str, ...], GroupKind, int]]:
        """A worker process opens the bank again: a copy would contain the mapped volumes."""
        return _reopen, (
            self.path,
            self.patch_size,
            tuple(self.cases[i].id for i in self.selected),
            self.kind,
            self.slices_around,
        )


# Functions of the module, not closures, so that an index can be sent to a worker process.
def _map_volumes(cases: tuple[BankCase, ...], case: int) -> tuple[np.ndarray, np.ndarray]:
    image, label = (map_array(cases[case].folder / name) for name in FILES[:2])
    if ((label >= len(cases[case].n_voxels)) & (label != OUTSIDE)).any():
        raise InputError(
            f"{cases[case].folder / FILES[1]}: has voxels of an unknown class; build the bank again"
        )
    return image, label


def _map_positions(cases: tuple[BankCase, ...], case: int) -> np.ndarray:
    return map_array(cases[case].folder / FILES[2], read_ahead=False)


def _reopen(
    path: Path, patch_size: tuple[int, ...], cases: tuple[str, ...], kind: GroupKind, slices_around: int
) -> PatchBank:
    return PatchBank(path, patch_size=patch_size, cases=cases, slices_around=slices_around).regroup(kind)
