"""Two networks in a row: healthy or tumor, then which tumor."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cascade(nn.Module):
    """Class probabilities as a product: p(class) = (1 - p(healthy)) x the classifier's.

    Attributes:
        margin: voxels that the output is smaller on each side; the larger of the two networks'.
    """

    def __init__(self, detector: nn.Module, classifier: nn.Module) -> None:
        """Join two trained networks.

        Args:
            detector: (B, M, *patch) -> logits of healthy and tumor (B, 2, *patch).
            classifier: (B, M, *patch) -> logits of the tumor classes (B, K - 1, *patch).
        """
        super().__init__()
        self.detector, self.classifier = detector, classifier
        self.margin = max(margin_of(detector), margin_of(classifier))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, M, *patch) -> logarithms of the class probabilities (B, K, *patch), healthy first."""
        healthy, tumor = F.log_softmax(_exact(self._shown(self.detector, x)), 1).split(1, dim=1)
        return torch.cat([healthy, tumor + F.log_softmax(_exact(self._shown(self.classifier, x)), 1)], 1)

    def _shown(self, network: nn.Module, x: Tensor) -> Tensor:
        """The output of a stage, which is shown no more around it than its own margin."""
        return network(crop_sides(x, self.margin - margin_of(network)))


def margin_of(network: nn.Module) -> int:
    """Voxels that a network's output is smaller than its input on each side: 0 but for valid convolutions."""
    return int(getattr(network, "margin", 0))


def crop_sides(x: Tensor, n: int) -> Tensor:
    """A batch (B, C, *patch) without its outermost n voxels on each side of each patch axis."""
    inside: tuple[slice, ...] = tuple(slice(n, side - n) for side in x.shape[2:])
    return x[:, :, *inside]


def _exact(logits: Tensor) -> Tensor:
    """At least float32: bfloat16 has 8 bits for a logarithm."""
    return logits if logits.dtype == torch.float64 else logits.float()
