"""Optimizer, learning rate of a step, and the running mean of the weights."""

from copy import deepcopy
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from brats_seg.core.sections import Optimizer

POLY_POWER = 0.9
"""Exponent of the polynomial schedule, as in nnU-Net (Isensee et al. 2021)."""


def make_optimizer(optimizer: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer for the trainable weights, in torch's fused form.

    With `decay` "kernels" the scales and shifts of norms and the biases (one axis) have no weight decay. With
    "everything" they have weight decay too, as in Caffe. A group with its own learning rate has the key
    `lr_factor`.
    """
    moving = [p for p in network.parameters() if p.requires_grad]
    flat_decay = optimizer.weight_decay if optimizer.decay == "everything" else 0.0
    faster = set() if optimizer.bias_lr_factor == 1 else _biases(network)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in moving if p.dim() > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in moving if p.dim() <= 1 and p not in faster], "weight_decay": flat_decay},
        {
            "params": [p for p in moving if p in faster],
            "weight_decay": flat_decay,
            "lr_factor": optimizer.bias_lr_factor,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if optimizer.kind == "sgd":
        nesterov = optimizer.nesterov and optimizer.momentum > 0
        return torch.optim.SGD(
            groups, lr=optimizer.lr, momentum=optimizer.momentum, nesterov=nesterov, fused=True
        )
    kind = torch.optim.Adam if optimizer.kind == "adam" else torch.optim.AdamW
    return kind(groups, lr=optimizer.lr, fused=True)


def _biases(network: nn.Module) -> set[nn.Parameter]:
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    biases = {module.bias for module in network.modules() if isinstance(module, layers)}
    return {bias for bias in biases if isinstance(bias, nn.Parameter)}


def learning_rate(optimizer: Optimizer, step: int, *, n_steps: int) -> float:
    """The rate of a step (from 0) in a run of `n_steps`: a linear warm-up, then the schedule (see
    `config.Optimizer`).

    "poly", "cosine" and "linear" decrease to 0 over the steps after the warm-up. "inverse" counts only the
    steps after the warm-up. The drops of "steps" are shares of all steps. The rate depends only on the step,
    so a resumed run needs no state of the schedule.
    """
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    since = step - optimizer.warmup_steps
    progress = since / max(1, n_steps - optimizer.warmup_steps)
    factors = {
        "constant": lambda: 1.0,
        "poly": lambda: (1 - progress) ** POLY_POWER,
        "cosine": lambda: (1 + cos(pi * progress)) / 2,
        "linear": lambda: 1 - progress,
        "inverse": lambda: (1 + optimizer.gamma * since) ** -optimizer.power,
        "steps": lambda: (
            optimizer.drop_factor ** sum(step >= round(drop * n_steps) for drop in optimizer.drops)
        ),
    }
    return float(optimizer.lr * factors[optimizer.schedule]())


class RunningMean:
    """An exponential running mean of a network's weights and batch-norm statistics.

    After n steps the decay is at most (1 + n) / (10 + n). Therefore the mean of a short run does not keep the
    random initial weights.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.network = deepcopy(network).eval().requires_grad_(False)
        self._decay = decay
        self._floats, self._counters = _tensors(self.network)

    @torch.no_grad()
    def update(self, network: nn.Module, *, n_steps: int) -> None:
        """Add the weights after step number `n_steps` (from 1) to the mean."""
        floats, counters = _tensors(network)
        decay = min(self._decay, (1 + n_steps) / (10 + n_steps))
        torch._foreach_lerp_(self._floats, floats, 1 - decay)
        if counters:
            torch._foreach_copy_(self._counters, counters)


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    everything = [*network.parameters(), *network.buffers()]
    return [t.detach() for t in everything if t.is_floating_point()], [
        t for t in everything if not t.is_floating_point()
    ]
