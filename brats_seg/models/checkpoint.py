"""Network + optimizer + sampler + config <-> one safe file."""

import math
import pickle
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_type_hints
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from brats_seg.core.config import Config, Network, parse_config
from brats_seg.core.errors import InputError, UsageError, printable
from brats_seg.core.files import atomic, open_regular, parse_yaml, shown
from brats_seg.core.runtime import Runtime
from brats_seg.models.networks import make_network

MOST_CLASSES = 254
"""Tissue classes are bytes, of which 255 is a voxel outside the brain."""
FORMAT = 1
"""Version of the file; a checkpoint of another one is refused."""
MAY_CHANGE = (
    "training.threads",
    "training.checkpoint_minutes",
    "training.checkpoint_epochs",
    "training.tensorboard",
)
"""Knobs that a resumed run may have another value of."""
_PREDICTION = ("network", "task", "patch", "loss", "augment")
"""Sections of the config that prediction depends on."""
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
        resume: the rest that going on to the same bits needs; None in a checkpoint to predict with.
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
_MOST_UNPACKED = 4
"""Bytes that packed records may unpack to, for each byte of the file: weights in bf16 take 1.3."""
_STRICT = ConfigDict(arbitrary_types_allowed=True, strict=True)
_KINDS = {name: TypeAdapter[Any](kind, config=_STRICT) for name, kind in get_type_hints(Checkpoint).items()}


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
        why = (isinstance(error, OSError) and error.strerror) or _first_line(error)
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
        _check_archive(path)
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
        raise InputError(f"{path}: truncated or not a checkpoint: {_first_line(error)}") from None
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


def check_same_data(
    checkpoint: Checkpoint, path: Path, *, modalities: Sequence[str], classes: Sequence[str]
) -> None:
    """Raise `InputError` where the data have other modalities, or in another order, or other tissue classes
    than the checkpoint.
    """
    for what, ours, theirs in (
        ("modalities", checkpoint.modalities, modalities),
        ("tissue classes", checkpoint.classes, classes),
    ):
        if tuple(ours) != tuple(theirs):
            raise InputError(
                f"{path}: trained on the {what} {', '.join(ours)}; the data have {', '.join(theirs)}"
            )


def check_same_run(
    checkpoint: Checkpoint, path: Path, *, config: str, bank: str, cases: tuple[tuple[str, ...], ...]
) -> None:
    """Check that a run may go on from a checkpoint: the same bank, the same cases in the same use, the same
    knobs but `MAY_CHANGE`.

    Args:
        checkpoint: of the run.
        path: what an error calls it.
        config: the resolved config to go on with, YAML.
        bank: digest of the bank to go on with.
        cases: ids of the train, inner and held-out cases.

    Raises:
        InputError: another bank or other cases.
        UsageError: another knob, by name.
    """
    if checkpoint.bank != bank:
        raise InputError(
            f"{path}: trained on the bank with digest {checkpoint.bank[:12]}; this one has {bank[:12]}"
        )
    before = (checkpoint.train_cases, checkpoint.inner_cases, checkpoint.held_out_cases)
    for use, then, now in zip(("train", "inner", "held-out"), before, cases, strict=True):
        if then != now:
            raise InputError(
                f"{path}: the {use} cases of the run were {', '.join(then)}; now they are {', '.join(now)}; "
                "give the same --fold"
            )
    # A knob that was not there yet when the run was started had the value that is its default now.
    knobs_then = _flat(Config().model_dump(mode="json")) | _flat(checkpoint.config_tree())
    knobs_now = _flat(parse_yaml(config))
    for name in sorted(set(knobs_then) | set(knobs_now)):
        if name not in MAY_CHANGE and knobs_then.get(name) != knobs_now.get(name):
            ours, theirs = shown(knobs_now.get(name)), shown(knobs_then.get(name))
            raise UsageError(
                f"--resume: {name} is {ours}; the run has {theirs}: give that, or start a new run"
            )


def restore_network(checkpoint: Checkpoint, path: Path, *, runtime: Runtime) -> nn.Module:
    """The checkpoint's network to predict with, in evaluation mode, on the runtime's device.

    Raises:
        InputError: the weights do not fit the network that the config describes.
    """
    config = checkpoint.parsed_config()
    make = partial(
        make_network,
        config.network,
        n_channels=len(checkpoint.modalities) * (2 * config.patch.slices_around + 1),
        n_classes=len(checkpoint.classes),
        n_dims=len(config.patch.size),
    )
    misfit = f"{path}: the weights do not fit network '{printable(config.network.name, limit=60)}'"
    n_weights = len(checkpoint.weights)
    if _n_layers(config.network) > n_weights:
        raise InputError(
            f"{misfit}: network.num_res_units and network.channels name more layers than the {n_weights} "
            "weights"
        )
    try:
        with _OnMeta():  # no memory for a network that the file does not hold
            wanted = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise InputError(f"{misfit}: {_first_line(error)}") from None
    given = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if wrong := [name for name in (*wanted, *given) if wanted.get(name) != given.get(name)]:
        raise InputError(
            f"{misfit}: {printable(wrong[0], limit=60)} has the shape {given.get(wrong[0])} instead of "
            f"{wanted.get(wrong[0])}"
        )
    network = make()
    network.load_state_dict(checkpoint.weights)
    return runtime.place(network).eval().requires_grad_(False)


def _deflate(path: Path) -> None:
    """Write the records of a checkpoint file again, each packed."""
    with ZipFile(path) as archive:
        records = [(ZipInfo(name), archive.read(name)) for name in archive.namelist()]
    with ZipFile(path, "w") as archive:
        for name, content in records:
            archive.writestr(name, content, compress_type=ZIP_DEFLATED, compresslevel=9)


def _check_archive(path: Path) -> None:
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


def _senseless_fields(checkpoint: Checkpoint) -> list[str]:
    """Names of the fields whose values cannot be: names given twice, sizes that are none, weights that are no
    plain numbers.
    """
    n_classes = len(checkpoint.classes)
    sound = {
        "weights": all(_is_plain(tensor) for tensor in checkpoint.weights.values()),
        "modalities": 0 < len(checkpoint.modalities) == len(set(checkpoint.modalities)),
        "classes": 1 < n_classes == len(set(checkpoint.classes)) <= MOST_CLASSES,
        "spacing_mm": len(checkpoint.spacing_mm) == 3
        and all(math.isfinite(mm) and mm > 0 for mm in checkpoint.spacing_mm),
        "normalization": _is_normalization(checkpoint.normalization),
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


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers, in memory, as a network's state does."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_complex() or tensor.is_quantized)
    )


def _is_normalization(normalization: Mapping[str, Any]) -> bool:
    """Whether intensities can be made so: the percentiles that are clipped, and whether bias fields are
    corrected.
    """
    ends = normalization.get("percentiles")
    if not (
        isinstance(ends, list | tuple) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    ):
        return False
    return 0 <= ends[0] < ends[1] <= 100 and isinstance(normalization.get("n4", False), bool)


def _n_layers(network: Network) -> int:
    """Layers that a network has at least."""
    return max(
        network.num_res_units, len(network.channels), *(_n_layers(stage) for stage in network.stages or ())
    )


class _OnMeta(TorchFunctionMode):
    """Weights are made without memory; what a network computes while it is built (such as positions) is
    not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, on the meta device where it makes a tensor of a size."""
        kwargs = dict(kwargs or {})
        if (
            func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)
            and kwargs.get("device") is None
        ):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def take_weights(network: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Begin with a checkpoint's weights in every layer whose weights all have the name and shape of the
    network's.

    The other layers stay as they are: a bias without its kernel would be of no use.

    Returns:
        The layers of the network that took none.

    Raises:
        InputError: no layer fits.
    """
    own = network.state_dict()
    given = checkpoint.weights
    misfits = [name for name, weight in own.items() if name not in given or given[name].shape != weight.shape]
    left_out = tuple(dict.fromkeys(name.rpartition(".")[0] for name in misfits))
    fitting = {name: given[name] for name in own if name.rpartition(".")[0] not in left_out}
    if not fitting:
        here, there = type(network).__name__, checkpoint.parsed_config().network.name
        raise InputError(
            f"--from: no layer of the checkpoint's network '{there}' fits this one ({here}); give the same "
            "network.name"
        )
    network.load_state_dict(fitting, strict=False)
    return left_out


def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: version(name) for name in ("brats-seg", "torch", "monai", "numpy", "numba")}


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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Knobs by their full path."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


_ARRAY = "__array__"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
