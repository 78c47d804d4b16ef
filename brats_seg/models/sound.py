"""Whether the fields of a checkpoint file can be what `train` writes: the file may come from anywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import torch
from pydantic import ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor
from typing_extensions import TypedDict

from brats_seg.core.files import open_regular

MOST_CLASSES = 254
"""Tissue classes are bytes, of which 255 is a voxel outside the brain."""
_MOST_UNPACKED = 4
"""Bytes that packed records may unpack to, for each byte of the file: weights in bf16 take 1.3."""


class SamplerState(TypedDict):
    """Where the draws of a run stand; pools and settings stand beside."""

    epoch: PositiveInt
    step: NonNegativeInt


class Resume(TypedDict):
    """What a run goes on from. What lies deeper is checked by what takes it up."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    learner: dict[str, dict[str, Any]]
    sampler: SamplerState
    ledger: dict[str, Any]
    log: dict[str, list[dict[str, Any]]]
    loss_sum: float
    best_epoch: PositiveInt | None
    best_score: float | None
    phase_began: NotRequired[PositiveInt]
    watch: NotRequired[dict[str, float]]


def check_archive(path: Path) -> None:
    """Refuse what `save_checkpoint` does not write: records that overlap, or that are packed so tightly that
    a few kilobytes could unpack to gigabytes.
    """
    with open_regular(path) as file, ZipFile(file) as archive:
        members = archive.infolist()
    if any(
        member.compress_type not in (ZIP_STORED, ZIP_DEFLATED)
        or (member.compress_type == ZIP_STORED and member.file_size != member.compress_size)
        for member in members
    ):
        raise BadZipFile("its records are packed in a way that torch does not read")
    packed = any(member.compress_type == ZIP_DEFLATED for member in members)
    if sum(member.file_size for member in members) > path.stat().st_size * (_MOST_UNPACKED if packed else 1):
        raise BadZipFile("its records claim more bytes than the file can have")


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers, in memory, as a network's state does."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_complex() or tensor.is_quantized)
    )


def is_normalization(normalization: Mapping[str, Any]) -> bool:
    """Whether intensities can be made so: the percentiles that are clipped, and whether bias fields are
    corrected.
    """
    ends = normalization.get("percentiles")
    if not (
        isinstance(ends, list | tuple) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    ):
        return False
    return 0 <= ends[0] < ends[1] <= 100 and isinstance(normalization.get("n4", False), bool)
