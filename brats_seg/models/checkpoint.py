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


FORMAT = 1
"""Version of the file; a checkpoint of another one is refused."""
_PREDICTION = ("network", "task", "patch", "loss", "augment")
"""Sections of the config that prediction depends on."""
_version = cache(version)
"""Each reads a file of the installed package."""
_MAGIC = "brats_seg checkpoint"
_DAMAGE = (
    RuntimeError, EOFError, OSError, BadZipFile, ValueError, TypeError, AttributeError, LookupError,
    AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
"""What torch raises over bytes that are not what it wrote, as 1,500 damaged files showed."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what has to be known to use it or to go on training it. Tensors and plain types
    only.

    Attributes:
        weights: state of the network to predict with (the running mean of the weights where there is one).
        config: the resolved config, YAML.
        modalities, classes: input channels and output classes, in order.
        spacing_mm: voxel size (Z, Y, X) of the bank.
        normalization: how the bank's intensities were made.
        bank: digest of the bank.
        fold: number of the held-out fold; None where every case was trained on.
        train_cases, inner_cases, held_out_cases: ids by their use; a held-out case was never seen.
        effective_prior: share of each class in what the loss saw, class weights included; None for a loss
            without a prior to divide by.
        natural_prior: share of each class among the brain voxels of the training cases; None in a checkpoint
            written before it was kept.
        epoch: epochs completed.
        step: steps done in the epoch after that.
        score: the metric on the inner split, None before the first validation.
        n_threads, precision: of the run.
        versions: of the libraries.
        resume: the rest that going on to the same bits needs (`sound.Resume`); None in one to predict
            with.
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
        """The config as models.

        Where another version wrote a knob that this one has not, the sections that prediction does not depend
        on are the defaults.

        Raises:
            UsageError: a knob of the network, task, patch, loss or augmentation that this version has not.
            InputError: not YAML.
        """
        tree = self.config_tree()
        try:
            return parse_config(tree)
        except UsageError:
            return parse_config({name: tree[name] for name in _PREDICTION if name in tree})

    def config_tree(self) -> dict[str, Any]:
        """The config as plain types. Raises `InputError` where it is no YAML mapping."""
        try:
            tree = parse_yaml(self.config)
        except ValueError as error:
            raise InputError(
                f"the config in the checkpoint is damaged: {error}; use another checkpoint"
            ) from None
        if not isinstance(tree, dict):
            raise InputError(
                f"the config in the checkpoint is damaged: {shown(tree)} is no mapping; use another "
                "checkpoint"
            )
        return tree


Packing = Literal["stored", "deflated"]
"""Whether the records of a checkpoint file stand as they are, or packed."""
_STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True)
_KINDS = {name: TypeAdapter[Any](kind, config=_STRICT) for name, kind in get_type_hints(Checkpoint).items()}
_KINDS["resume"] = TypeAdapter(Resume | None)


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, packing: Packing = "stored") -> None:
    """Write a checkpoint in one piece: a good one stays until the new one is whole.

    Args:
        path: of the file.
        checkpoint: what is written.
        packing: "deflated" takes a fifth off weights in bf16; `torch.load` reads both.

    Raises:
        InputError: it could not be written, say for a full disk.
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
            f"{path}: the checkpoint cannot be written: {why}; the one before it is kept"
        ) from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed.

    Raises:
        InputError: no such file, truncated, with code in it, not a checkpoint of this package, or of another
            version.
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
            )  # torch warns of a foreign pickle before it refuses it
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
        raise InputError(f"{path}: damaged, of another type than it should be: {', '.join(wrong)}")
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
    """Versions of what a result depends on."""
    return {name: _version(name) for name in ("brats-seg", "torch", "monai", "numpy", "numba")}


def _senseless_fields(checkpoint: Checkpoint) -> list[str]:
    """Names of the fields whose values cannot be: names given twice, sizes that are none, weights that are no
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
    """Write the records of a checkpoint file again, each packed, under a root of its own, not the name of the
    file: the same weights give the same bytes.
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
    """NumPy arrays as tensors: what `weights_only` reads back."""
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
    """Whether a value is what that field of a checkpoint holds."""
    try:
        _KINDS[name].validate_python(value)
    except ValidationError:
        return False
    return True


_ARRAY = "__array__"


def first_line(error: Exception) -> str:
    """What an error says first; its type where it says nothing."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
