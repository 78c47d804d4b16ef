"""The output weights of each class: divide them by their length, or keep their direction."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brats_seg.core.errors import UsageError

Rows = Float[Tensor, "k n"]
"""One row of weights for each class; the last column is the bias, if the layer has one."""


def linear_output(layer: nn.Module) -> nn.Linear | nn.Conv2d | nn.Conv3d:
    """The only linear map in an output layer. Raises `UsageError` if the layer has several linear maps or a
    transposed convolution.
    """
    layers = [m for m in layer.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear | nn.Conv2d | nn.Conv3d):
        raise UsageError(
            "phases: the output layer of this network is not one linear map, so a class has no separate "
            "weights to scale; use a network with one linear map, such as basic_unet2d, dynunet or segresnet"
        )
    return layers[0]


def rows_of(layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> Rows:
    """A copy of the weights and the bias of each class."""
    parts = [layer.weight.detach().flatten(1)]
    if layer.bias is not None:
        parts.append(layer.bias.detach()[:, None])
    return torch.cat(parts, 1)


@torch.no_grad()
def set_rows(layer: nn.Linear | nn.Conv2d | nn.Conv3d, rows: Rows) -> None:
    """Write the weights of each class, and the biases if the layer has them."""
    n = layer.weight[0].numel()
    layer.weight.copy_(rows[:, :n].view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(rows[:, n])


@torch.no_grad()
def normalize_rows(layer: nn.Linear | nn.Conv2d | nn.Conv3d, *, power: float) -> None:
    """Divide the weights of each class by their length to a power, and set the biases to 0
    (tau-normalization; Kang et al. 2020, section 4).
    """
    lengths = layer.weight.flatten(1).norm(dim=1).clamp(min=1e-12)
    layer.weight.div_((lengths**power).view(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.zero_()


class Directions:
    """The present direction of the weights of each class. Later weights are moved back to this direction.

    The training then changes only the length of the weights (learnable weight scaling; Kang et al. 2020,
    section 4). The network keeps its parameters, so it is saved and loaded as any other network.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
        self._layer = layer
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Rows]:
        """The directions, each of length 1."""
        return {"units": self._units}

    def load_state_dict(self, state: Mapping[str, Rows]) -> None:
        """Keep these directions from now on. Without directions, keep the directions of the present
        weights.
        """
        rows = rows_of(self._layer)
        units = state["units"] if state else torch.nn.functional.normalize(rows, dim=1)
        self._units = units.to(rows.device)

    def keep(self) -> None:
        """Move the weights of each class to the nearest point on the line of their direction."""
        set_rows(self._layer, (rows_of(self._layer) * self._units).sum(1, keepdim=True) * self._units)
