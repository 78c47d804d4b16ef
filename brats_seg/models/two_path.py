"""Havaei et al. 2017: two paths of valid convolutions, and the cascade of two such networks."""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

TWO_PATH_SIDE, CASCADE_SIDE = 33, 65
"""Input from which one voxel comes out: of a `TwoPath`, and of two in a row."""
PUBLISHED_WIDTHS = (64, 160)
"""Maps of the local and of the global path."""
_FINAL = 21


class TwoPath(nn.Module):
    """TwoPathCNN (Havaei et al. 2017, section 3.1.1, figure 2): detail and context side by side; the
    classifier sees 21 x 21 of both.

    Local path: 7 x 7 maxout, max-pool 4, 3 x 3 maxout, max-pool 2, all of stride 1. Global path: 13 x 13
    maxout. Nothing is padded: of an input (B, M, Y, X) come logits (B, K, Y - 32, X - 32), of 33 x 33 one for
    its center. A maxout is the larger of two convolutions (Goodfellow et al. 2013). Norm "none" is the
    paper's; "batch" normalizes each convolution before its maxout, so that Adam's usual rates train it.
    Dropout is on what the classifier sees.
    """

    margin = TWO_PATH_SIDE // 2
    """Voxels that the output is smaller on each side."""

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        *,
        widths: tuple[int, int] = PUBLISHED_WIDTHS,
        norm: Any,
        dropout: float,
    ) -> None:
        """Kaiming-like start: a maxout of two keeps the mean square of its input.

        Args:
            n_channels: of the input.
            n_classes: of the output.
            widths: maps of the local and of the global path.
            norm: MONAI's name and settings; None for none.
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
    """InputCascadeCNN (Havaei et al. 2017, section 3.1.2, figure 3a): class probabilities of a first network
    beside the second's input.

    Of 65 x 65 the first gives the class probabilities of the inner 33 x 33; joined to the image there they
    are the second's input. The paper trains the first alone and then the second; here both learn at once from
    the second's output, end to end.
    """

    margin = CASCADE_SIDE // 2
    """Voxels that the output is smaller on each side."""

    def __init__(
        self,
        n_channels: int,
        n_classes: int,
        *,
        widths: tuple[int, int] = PUBLISHED_WIDTHS,
        norm: Any,
        dropout: float,
    ) -> None:
        """Two networks as `TwoPath`, of the same size."""
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
        # The square of the larger of two standard normal numbers is 1 in the mean: no gain.
        nn.init.kaiming_normal_(self.pieces.get_parameter("conv.weight"), nonlinearity="linear")
        nn.init.zeros_(self.pieces.get_parameter("conv.bias"))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(*self.pieces(x).chunk(2, dim=1))


class _Classifier(nn.Conv2d):
    """A 21 x 21 convolution onto the classes, computed so that it is fast, and scaled so that it learns.

    Its kernel is held 441 times larger than it acts. A logit sums 224 x 441 maps that rise and fall together:
    at Adam's usual rates, where every weight moves alike, one step would move it by hundreds.
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
    """A valid convolution (B, C, Y, X) with a kernel (K, C, n, n), each of its n columns a convolution of its
    own.

    On CPUs a wide kernel onto a handful of maps is the slowest case: forward and backward of 8 x 224 x 53 x
    53 with 21 x 21 onto 5 took 15 s on one core, as 21 columns onto 105 maps 0.2 s.
    """
    n_classes, _, n, _ = kernel.shape
    columns = (
        kernel.permute(3, 0, 1, 2).flatten(0, 1)[..., None].contiguous(memory_format=torch.channels_last)
    )
    # (B, n columns, K, Y, X) -> (B, K, Y, n * X): column k of the kernel counts k voxels to the right ...
    parts = F.conv2d(x, columns).unflatten(1, (n, n_classes)).permute(0, 2, 3, 1, 4)
    width = parts.shape[-1]
    # ... and so the rows are cut one voxel longer than they are, which moves row k by k.
    rows = F.pad(parts.flatten(-2), (0, n)).unflatten(-1, (n, width + 1))
    return rows[..., : width - n + 1].sum(-2)
