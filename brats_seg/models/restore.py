"""A checkpoint -> a network, and the check whether a run may be resumed from the checkpoint."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from brats_seg.core.config import Config
from brats_seg.core.errors import InputError, UsageError, printable
from brats_seg.core.files import parse_yaml, shown
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Network
from brats_seg.models.checkpoint import Checkpoint, first_line
from brats_seg.models.networks import make_network

MAY_CHANGE = (
    "training.threads",
    "training.checkpoint_minutes",
    "training.checkpoint_epochs",
    "training.tensorboard",
    "training.cudnn_benchmark",
)
"""Knobs whose value may change when a run is resumed."""


def check_same_data(
    checkpoint: Checkpoint, path: Path, *, modalities: Sequence[str], classes: Sequence[str]
) -> None:
    """Raise `InputError` if the data have other modalities, another order of modalities or other tissue
    classes than the checkpoint.
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
    """Check that a run may be resumed from a checkpoint: the bank, the use of each case and the knobs except
    `MAY_CHANGE` must be the same.

    Args:
        checkpoint: checkpoint of the run.
        path: path of the checkpoint, for error messages.
        config: the resolved config of the resumed run, as YAML text.
        bank: digest of the bank of the resumed run.
        cases: ids of the training, inner and held-out cases.

    Raises:
        InputError: the bank or the cases differ.
        UsageError: a knob differs; the message names the knob.
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
    # If a knob did not exist when the run was started, its value was the present default.
    knobs_then = _flat(Config().model_dump(mode="json")) | _flat(checkpoint.config_tree())
    knobs_now = _flat(parse_yaml(config))
    for name in sorted(set(knobs_then) | set(knobs_now)):
        if name not in MAY_CHANGE and knobs_then.get(name) != knobs_now.get(name):
            ours, theirs = (shown(knobs.get(name, _default(name))) for knobs in (knobs_now, knobs_then))
            raise UsageError(
                f"--resume: {name} is {ours}; the run has {theirs}: give that, or start a new run"
            )


def _default(name: str) -> Any:
    """The default of a knob; None for a name that is not a knob."""
    value: Any = Config()
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def restore_network(checkpoint: Checkpoint, path: Path, *, runtime: Runtime) -> nn.Module:
    """The network of a checkpoint for prediction, in evaluation mode, on the device of the runtime.

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
        with _OnMeta():  # no memory is used for a network that is not in the file
            wanted = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise InputError(f"{misfit}: {first_line(error)}") from None
    given = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if wrong := [name for name in (*wanted, *given) if wanted.get(name) != given.get(name)]:
        raise InputError(
            f"{misfit}: {printable(wrong[0], limit=60)} has the shape {given.get(wrong[0])} instead of "
            f"{wanted.get(wrong[0])}"
        )
    network = make()
    network.load_state_dict(checkpoint.weights)
    return runtime.place(network).eval().requires_grad_(False)


def _n_layers(network: Network) -> int:
    return max(
        network.num_res_units, len(network.channels), *(_n_layers(stage) for stage in network.stages or ())
    )


class _OnMeta(TorchFunctionMode):
    """Creates weights without memory. Values that a network computes while it is built (such as positions)
    are computed normally.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`. If it creates a tensor of a given size, use the meta device."""
        kwargs = dict(kwargs or {})
        if (
            func in (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)
            and kwargs.get("device") is None
        ):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def take_weights(network: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Copy the weights of a checkpoint into every layer whose weights all have the same name and shape.

    The other layers stay unchanged. A layer is never copied in part, because a bias without its kernel would
    be useless.

    Returns:
        The layers of the network that were not copied.

    Raises:
        InputError: no layer fits.
    """
    own = network.state_dict()
    weights = checkpoint.weights
    misfits = [
        name for name, weight in own.items() if name not in weights or weights[name].shape != weight.shape
    ]
    left_out = tuple(dict.fromkeys(name.rpartition(".")[0] for name in misfits))
    fitting = {name: weights[name] for name in own if name.rpartition(".")[0] not in left_out}
    if not fitting:
        here, there = type(network).__name__, checkpoint.parsed_config().network.name
        raise InputError(
            f"--from: no layer of the checkpoint's network '{there}' fits this one ({here}); give the same "
            "network.name"
        )
    network.load_state_dict(fitting, strict=False)
    return left_out


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Knobs by their full path."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
