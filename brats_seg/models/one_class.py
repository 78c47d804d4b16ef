"""Networks that learn one class from its images: convolutional autoencoder and deep SVDD."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brats_seg.core.errors import UsageError

Images = Float[Tensor, "b c y x"]
Losses = Float[Tensor, "b 1"]
"""The loss of each image."""
_LEAK = 0.1
_LEAST = 0.1
"""Least distance from 0 of each coordinate of the center of deep SVDD."""


class Autoencoder(nn.Module):
    """An encoder of convolutions with stride 2 to a short code, and a decoder. The network learns to
    reconstruct its input.

    No layer has a bias, because the encoder can be trained on as deep SVDD, which must not have a bias (Ruff
    et al. 2018, section 3.3).
    """

    def __init__(
        self, n_channels: int, image_size: tuple[int, int], *, width: int = 16, code: int = 32
    ) -> None:
        """Build the autoencoder, initialized from torch's global generator.

        Args:
            n_channels: number of channels of an image.
            image_size: (Y, X) in pixels, both multiples of 4.
            width: number of features of the first layer; the second layer has twice as many.
            code: number of features between encoder and decoder.

        Raises:
            UsageError: a side is not a multiple of 4.
        """
        super().__init__()
        if any(side % 4 for side in image_size):
            shown = " x ".join(map(str, image_size))
            raise UsageError(f"images of {shown}: the autoencoder halves a side twice; use multiples of 4")
        y, x = (side // 4 for side in image_size)
        self.encoder = nn.Sequential(
            nn.Conv2d(n_channels, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(width, affine=False),
            nn.LeakyReLU(_LEAK),
            nn.Conv2d(width, 2 * width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(2 * width, affine=False),
            nn.LeakyReLU(_LEAK),
            nn.Flatten(),
            nn.Linear(2 * width * y * x, code, bias=False),
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, 2 * width * y * x, bias=False),
            nn.Unflatten(1, (2 * width, y, x)),
            nn.BatchNorm2d(2 * width, affine=False),
            nn.LeakyReLU(_LEAK),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width, affine=False),
            nn.LeakyReLU(_LEAK),
            nn.ConvTranspose2d(width, n_channels, 4, stride=2, padding=1, bias=False),
        )

    def residual(self, images: Images) -> Images:
        """The reconstruction minus the images."""
        difference: Tensor = self.decoder(self.encoder(images)) - images
        return difference

    def forward(self, images: Images) -> Losses:
        """The mean squared error of each image."""
        return self.residual(images).square().flatten(1).mean(1, keepdim=True)


class DeepSvdd(nn.Module):
    """An encoder that learns to map images close to a fixed center (Ruff et al. 2018, equation 4, the
    one-class form). The distance to the center is the score.
    """

    center: Tensor

    def __init__(self, encoder: nn.Module, center: Float[Tensor, " features"]) -> None:
        """Start from a trained encoder.

        Args:
            encoder: encoder of an autoencoder; the training changes it.
            center: mean of its features. Coordinates between -0.1 and 0.1 are moved to 0.1 or -0.1. Otherwise
                the encoder could set this feature to 0 for every image.
        """
        super().__init__()
        self.encoder = encoder
        away = torch.where(center < 0, -_LEAST, _LEAST)
        self.register_buffer("center", torch.where(center.abs() < _LEAST, away, center))

    def forward(self, images: Images) -> Losses:
        """The squared distance of each image to the center."""
        return (self.encoder(images) - self.center).square().sum(1, keepdim=True)
