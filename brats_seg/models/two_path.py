"""The networks of Havaei et al. 2017: two paths of valid convolutions, and the cascade of two such
networks.
"""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

TWO_PATH_SIDE, CASCADE_SIDE = 33, 65
"""Side of the input that gives an output of one voxel, in voxels: for one `TwoPath`, and for two in a row."""
PUBLISHED_WIDTHS = (64, 160)
"""Number of feature maps of the local and of the global path."""
_FINAL = 21


class TwoPath(nn.Module):
    """TwoPathCNN (Havaei et al. 2017, section 3.1.1, figure 2): a local path for detail and a global path for
    context. The classifier uses 21 x 21 voxels of both.

    Local path: 7 x 7 maxout, max-pool 4, 3 x 3 maxout, max-pool 2, all with stride 1. Global path: 13 x 13
    maxout. Nothing is padded: an input (B, M, Y, X) gives logits (B, K, Y - 32, X - 32), so an input of 33 x
    33 gives the logits of its center. A maxout is the larger of two convolutions (Goodfellow et al. 2013).
    Norm "none" is as in the paper. Norm "batch" normalizes each convolution before its maxout, so that Adam
    trains it with its usual learning rates. Dropout is applied to the input of the classifier.
    """

    margin = TWO_PATH_SIDE // 2
    """Number of voxels by which the output is smaller than the input on each side."""

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        *,
        widths: tuple[int, int] = PUBLISHED_WIDTHS,
        norm: Any,
        dropout: float,
    ) -> None:
        """Initialize as Kaiming does: a maxout of two convolutions keeps the mean square of its input.

        Args:
            n_channels: number of input channels.
            n_classes: number of classes.
            widths: numbers of feature maps of the local and of the global path.
            norm: MONAI's name and settings of the norm; None for no norm.
            dropout: share of the classifier's input that is zeroed in training.
        """
        super().__init__()
        local, wide = widths
        self.local_path = nn.Sequential(
            _Maxout(n_channels, local, side=7, norm=norm),
            nn.MaxPool2d(4, stride=1),
            _Maxout(local, local, side=3, norm=norm),
            nn.MaxPool2d(2, stride=1),
        )
        self.global_path = _Maxout(n_channels, wide, side=13, norm=norm)
        self.dropout = nn.Dropout(dropout)
        self.classifier = _Classifier(local + wide, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, M, Y, X) -> logits (B, K, Y - 32, X - 32)."""
        return self.classifier(self.dropout(torch.cat([self.local_path(x), self.global_path(x)], 1)))


class InputCascade(nn.Module):
    """InputCascadeCNN (Havaei et al. 2017, section 3.1.2, figure 3a): the class probabilities of a first
    network are additional input channels of a second network.

    From an input of 65 x 65 the first network computes the class probabilities of the inner 33 x 33 voxels.
    They are joined to the image of these voxels as the input of the second network. The paper trains the
    first network alone and then the second. Here both are trained together from the output of the second
    network.
    """

    margin = CASCADE_SIDE // 2
    """Number of voxels by which the output is smaller than the input on each side."""

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        *,
        widths: tuple[int, int] = PUBLISHED_WIDTHS,
        norm: Any,
        dropout: float,
    ) -> None:
        """Build two `TwoPath` networks of the same size."""
        super().__init__()
        self.first = TwoPath(n_channels, n_classes, widths=widths, norm=norm, dropout=dropout)
        self.second = TwoPath(n_channels + n_classes, n_classes, widths=widths, norm=norm, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, M, Y, X) -> logits (B, K, Y - 64, X - 64)."""
        m = self.first.margin
        return self.second(torch.cat([x[:, :, m:-m, m:-m], torch.softmax(self.first(x), 1)], 1))


class _Maxout(nn.Module):
    """The larger of two valid convolutions, map by map."""

    def __init__(self, n_in: int, n_out: int, *, side: int, norm: Any) -> None:
        super().__init__()
        self.pieces = Convolution(2, n_in, 2 * n_out, kernel_size=side, padding=0, act=None, norm=norm)
        # The mean square of the larger of two standard normal numbers is 1, so no gain is needed.
        nn.init.kaiming_normal_(self.pieces.get_parameter("conv.weight"), nonlinearity="linear")
        nn.init.zeros_(self.pieces.get_parameter("conv.bias"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(*self.pieces(x).chunk(2, dim=1))


class _Classifier(nn.Conv2d):
    """A 21 x 21 convolution to the classes. It is computed in a fast way, and scaled so that Adam can train
    it.

    The stored kernel is 441 times larger than the kernel that is used. A logit is the sum of 224 x 441
    correlated values. Adam moves every weight by the same amount, so at its usual learning rates one step
    would change the logit by hundreds.
    """

    def __init__(self, n_in: int, n_classes: int) -> None:
        super().__init__(n_in, n_classes, _FINAL)
        nn.init.normal_(self.weight, std=1 / sqrt(n_in))
        nn.init.zeros_(self.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight / _FINAL**2
        if x.shape[-1] == _FINAL:
            return F.conv2d(x, kernel, self.bias)
        return _convolve_in_columns(x, kernel) + self.get_parameter("bias")[:, None, None]


def _convolve_in_columns(x: Tensor, kernel: Tensor) -> Tensor:
    """A valid convolution (B, C, Y, X) with a kernel (K, C, n, n). Each of the n columns of the kernel is a
    separate convolution.

    On CPUs a wide kernel with few output maps is the slowest case: forward and backward of 8 x 224 x 53 x 53
    with a 21 x 21 kernel to 5 maps took 15 s on one core, but with 21 columns to 105 maps 0.2 s.
    """
    n_classes, _, n, _ = kernel.shape
    columns = (
        kernel.permute(3, 0, 1, 2).flatten(0, 1)[..., None].contiguous(memory_format=torch.channels_last)
    )
    # (B, n columns, K, Y, X) -> (B, K, Y, n * X): column k of the kernel counts k voxels to the right ...
    parts = F.conv2d(x, columns).unflatten(1, (n, n_classes)).permute(0, 2, 3, 1, 4)
    width = parts.shape[-1]
    # ... so each row is read one voxel longer than it is, which shifts row k by k voxels.
    rows = F.pad(parts.flatten(-2), (0, n)).unflatten(-1, (n, width + 1))
    return rows[..., : width - n + 1].sum(-2)
