"""The reference 2-D U-Net, and what it costs."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brats_seg.core.sections import Network
from brats_seg.models.networks import make_network


def reference_network(n_classes: int) -> nn.Module:
    """MONAI's UNet, 2-D, 4 -> K, channels 32 64 128 256, two residual units, batch norm; as if trained:
    statistics that do something.
    """
    torch.manual_seed(0)
    network = (
        make_network(Network(), n_channels=4, n_classes=n_classes, n_dims=2).eval().requires_grad_(False)
    )
    for module in network.modules():
        if (
            isinstance(module, nn.BatchNorm2d)
            and module.running_mean is not None
            and module.running_var is not None
        ):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def flops_of(network: nn.Module, *shape: int) -> float:
    """Floating-point operations of one pass over an input of this shape, two for each multiplication and
    addition (torch's count).
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(shape))
    return float(counter.get_total_flops())


def channels_last(network: nn.Module) -> nn.Module:
    """The network itself, its weights channels last."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
