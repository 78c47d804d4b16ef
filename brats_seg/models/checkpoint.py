"""Network + optimizer + sampler + config <-> one safe file."""

import math
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NotRequired, get_type_hints
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from brats_seg.core.config import Config, parse_config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import atomic, open_regular, parse_yaml, shown

MOST_CLASSES = 254
"""Tissue classes are stored as bytes. The value 255 marks a voxel outside the brain."""
_MOST_UNPACKED = 4
"""The largest allowed ratio of unpacked bytes to bytes of the file. Weights in bf16 have 1.3."""


class SamplerState(TypedDict):
    """The position of a run in its random draws. The pools and settings of the sampler are stored
    separately.
    """

    epoch: PositiveInt
    step: NonNegativeInt


class Resume(TypedDict):
    """The state from which a run is resumed. Nested values are checked by the code that loads them."""

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
    """Refuse an archive that `save_checkpoint` cannot have written: records that overlap, or records so
    tightly packed that a few kilobytes could unpack to gigabytes.
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
    """Whether a tensor holds real numbers in memory, as the state of a network does."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_complex() or tensor.is_quantized)
    )


def is_normalization(normalization: Mapping[str, Any]) -> bool:
    """Whether a mapping is a valid normalization: the percentiles for clipping, and whether bias fields are
    corrected.
    """
    ends = normalization.get("percentiles")
    if not (
        isinstance(ends, list | tuple) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    ):
        return False
    return 0 <= ends[0] < ends[1] <= 100 and isinstance(normalization.get("n4", False), bool)


FORMAT = 1
"""Version of the file format. A checkpoint of another version is refused."""
_PREDICTION = ("network", "task", "patch", "loss", "augment")
"""Sections of the config on which prediction depends."""
_version = cache(version)
"""Version of a library. The cache avoids reading a file of the installed package at each call."""
_MAGIC = "brats_seg checkpoint"
_DAMAGE = (
    RuntimeError, EOFError, OSError, BadZipFile, ValueError, TypeError, AttributeError, LookupError,
    AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
"""The errors that torch raises for damaged files, found by reading 1,500 damaged files."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with everything that is needed to use it or to resume its training. It holds only
    tensors and plain types.

    Attributes:
        weights: state of the network for prediction (the running mean of the weights if the run keeps one).
        config: the resolved config, as YAML text.
        modalities, classes: input channels and output classes, in order.
        spacing_mm: voxel size (Z, Y, X) of the bank.
        normalization: how the intensities of the bank were normalized.
        bank: digest of the bank.
        fold: number of the held-out fold; None if every case was used for training.
        train_cases, inner_cases, held_out_cases: ids of the cases by their use. The training never used a
            held-out case.
        effective_prior: share of each class in the voxels that the loss used, including class weights; None
            for a loss without a prior that can be corrected.
        natural_prior: share of each class among the brain voxels of the training cases; None in a checkpoint
            of a version that did not store it.
        epoch: number of completed epochs.
        step: number of steps done in the next epoch.
        score: the metric on the inner cases; None before the first validation.
        n_threads, precision: number of threads and precision of the run.
        versions: versions of the libraries.
        resume: everything else that a bit-exact resumption needs (`Resume`); None in a checkpoint for
            prediction only.
    """

    weights: Mapping[str, Tensor]
    config: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    normalization: Mapping[str, Any]
    bank: str
    fold: int | None
    train_cases: tuple[str, ...]
    inner_cases: tuple[str, ...]
    held_out_cases: tuple[str, ...]
    effective_prior: tuple[float, ...] | None
    epoch: int
    step: int
    score: float | None
    n_threads: int
    precision: str
    versions: Mapping[str, str]
    natural_prior: tuple[float, ...] | None = None
    resume: Mapping[str, Any] | None = None

    def parsed_config(self) -> Config:
        """The config as a `Config`.

        If another version wrote a knob that this version does not have, the sections on which prediction does
        not depend get their defaults.

        Raises:
            UsageError: this version does not have a knob of the network, task, patch, loss or augmentation.
            InputError: the config is not YAML.
        """
        tree = self.config_tree()
        try:
            return parse_config(tree)
        except UsageError:
            return parse_config({name: tree[name] for name in _PREDICTION if name in tree})

    def config_tree(self) -> dict[str, Any]:
        """The config as plain types. Raises `InputError` if it is not a YAML mapping."""
        try:
            tree = parse_yaml(self.config)
        except ValueError as error:
            raise InputError(
                f"the config in the checkpoint is damaged: {error}; use another checkpoint"
            ) from None
        if not isinstance(tree, dict):
            raise InputError(
                f"the config in the checkpoint is damaged: {shown(tree)} is not a mapping; use another "
                "checkpoint"
            )
        return tree


Packing = Literal["stored", "deflated"]
"""Whether the records of a checkpoint file are stored as they are, or compressed."""
_STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True)
_KINDS = {name: TypeAdapter[Any](kind, config=_STRICT) for name, kind in get_type_hints(Checkpoint).items()}
_KINDS["resume"] = TypeAdapter(Resume | None)


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, packing: Packing = "stored") -> None:
    """Write a checkpoint atomically: the old file stays until the new file is complete.

    Args:
        path: path of the file.
        checkpoint: the checkpoint to write.
        packing: "deflated" makes a file with bf16 weights a fifth smaller; `torch.load` reads both.

    Raises:
        InputError: the file could not be written, for example because the disk is full.
    """
    shallow = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    try:
        with atomic(path) as part:
            torch.save({"kind": _MAGIC, "format": FORMAT, **_to_plain(shallow)}, part)
            if packing == "deflated":
                _deflate(part)
    except (OSError, RuntimeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise InputError(
            f"{path}: the checkpoint cannot be written: {why}; the checkpoint before it is kept"
        ) from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed.

    Raises:
        InputError: the file does not exist, is truncated, contains code, is not a checkpoint of this package,
            or has another version.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such checkpoint; train writes checkpoint_last.pt and checkpoint_best.pt"
        )
    try:
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # torch warns about an unknown pickle before it refuses the pickle
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: refused, it holds more than tensors and plain types (a pickle with code) or is damaged"
        ) from None
    except _DAMAGE as error:
        raise InputError(f"{path}: truncated or not a checkpoint: {first_line(error)}") from None
    if not isinstance(tree, dict) or tree.get("kind") != _MAGIC:
        raise InputError(f"{path}: not a checkpoint of brats_seg")
    if tree.get("format") != FORMAT:
        raise InputError(
            f"{path}: checkpoint version {tree.get('format')}; this program reads version {FORMAT}"
        )
    tree = {"natural_prior": None, **tree}
    names = {field.name for field in fields(Checkpoint)}
    if names != set(tree) - {"kind", "format"}:
        raise InputError(
            f"{path}: damaged, the fields {sorted(names ^ (set(tree) - {'kind', 'format'}))} are missing or "
            "unknown"
        )
    if wrong := [name for name in _KINDS if not _is_of_kind(tree[name], name)]:
        raise InputError(f"{path}: damaged, of the wrong type: {', '.join(wrong)}")
    checkpoint = Checkpoint(**{name: _from_plain(tree[name]) for name in names})
    if senseless := _senseless_fields(checkpoint):
        raise InputError(
            f"{path}: damaged, {senseless[0]} is {shown(getattr(checkpoint, senseless[0]))}; use another "
            "checkpoint"
        )
    try:
        checkpoint.config_tree()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return checkpoint


def library_versions() -> dict[str, str]:
    """Versions of the libraries on which a result depends."""
    return {name: _version(name) for name in ("brats-seg", "torch", "monai", "numpy", "numba")}


def _senseless_fields(checkpoint: Checkpoint) -> list[str]:
    """Names of the fields with impossible values: names given twice, invalid sizes, or weights that are not
    plain numbers.
    """
    n_classes = len(checkpoint.classes)
    sound = {
        "weights": all(is_plain(tensor) for tensor in checkpoint.weights.values()),
        "modalities": 0 < len(checkpoint.modalities) == len(set(checkpoint.modalities)),
        "classes": 1 < n_classes == len(set(checkpoint.classes)) <= MOST_CLASSES,
        "spacing_mm": len(checkpoint.spacing_mm) == 3
        and all(math.isfinite(mm) and mm > 0 for mm in checkpoint.spacing_mm),
        "normalization": is_normalization(checkpoint.normalization),
        "epoch": checkpoint.epoch >= 0,
        "step": checkpoint.step >= 0,
        "n_threads": checkpoint.n_threads >= 0,
        "fold": checkpoint.fold is None or checkpoint.fold >= 0,
    }
    for name in ("effective_prior", "natural_prior"):
        prior = getattr(checkpoint, name)
        sound[name] = prior is None or (
            len(prior) == n_classes and all(math.isfinite(share) and share >= 0 for share in prior)
        )
    return [name for name, is_sound in sound.items() if not is_sound]


def _deflate(path: Path) -> None:
    """Write the records of a checkpoint file again, each compressed. The records lie under a fixed root
    instead of the name of the file, so that the same weights give the same bytes.
    """
    with ZipFile(path) as archive:
        records = [
            (ZipInfo("checkpoint/" + name.split("/", 1)[1]), archive.read(name))
            for name in archive.namelist()
        ]
    with ZipFile(path, "w") as archive:
        for name, content in records:
            archive.writestr(name, content, compress_type=ZIP_DEFLATED, compresslevel=9)


def _to_plain(value: Any) -> Any:
    """Convert NumPy arrays to tensors, which `weights_only` can read."""
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_to_plain(item) for item in value)
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return (
            value[_ARRAY].numpy()
            if set(value) == {_ARRAY}
            else {key: _from_plain(item) for key, item in value.items()}
        )
    if isinstance(value, tuple | list):
        return type(value)(_from_plain(item) for item in value)
    return value


def _is_of_kind(value: Any, name: str) -> bool:
    """Whether a value has the type of this field of a checkpoint."""
    try:
        _KINDS[name].validate_python(value)
    except ValidationError:
        return False
    return True


_ARRAY = "__array__"


def first_line(error: Exception) -> str:
    """The first line of an error's text; the type of the error if the text is empty."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
