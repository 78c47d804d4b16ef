"""Networks that learn what one class looks like: convolutional autoencoder and deep SVDD."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brats_seg.core.errors import UsageError

Images = Float[Tensor, "b c y x"]
Losses = Float[Tensor, "b 1"]
"""The loss of each image."""
_LEAK = 0.1
_LEAST = 0.1
"""No coordinate of the center of deep SVDD is nearer to 0."""


class Autoencoder(nn.Module):
    """Convolutions of stride 2 down to a short code, and back up. It learns to give its input back.

    No layer has a bias, so that its encoder can go on as deep SVDD, which must have none (Ruff et al. 2018,
    section 3.3).
    """

    def __init__(
        self, n_channels: int, image_size: tuple[int, int], *, width: int = 16, code: int = 32
    ) -> None:
        """Build it from torch's global generator.

        Args:
            n_channels: of an image.
            image_size: (Y, X) in pixels, both multiples of 4.
            width: features of the first layer; the second has twice as many.
            code: features between encoder and decoder.

        Raises:
            UsageError: a side that is no multiple of 4.
        """
        super().__init__()
        if any(side % 4 for side in image_size):
            shown = " x ".join(map(str, image_size))
            raise UsageError(f"images of {shown}: the autoencoder halves a side twice; take multiples of 4")
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
        """What the autoencoder gives back, minus the images."""
        difference: Tensor = self.decoder(self.encoder(images)) - images
        return difference

    def forward(self, images: Images) -> Losses:
        """The mean squared error of each image."""
        return self.residual(images).square().flatten(1).mean(1, keepdim=True)


class DeepSvdd(nn.Module):
    """An encoder that brings images near a fixed center (Ruff et al. 2018, equation 4, the one-class form);
    the distance is the score.
    """

    center: Tensor

    def __init__(self, encoder: nn.Module, center: Float[Tensor, " features"]) -> None:
        """Go on from a trained encoder.

        Args:
            encoder: of an autoencoder; changed in training.
            center: mean of its features. Coordinates within 0.1 of 0 are moved to 0.1 or -0.1, as a feature
                that is 0 for every image is learned at once.
        """
        super().__init__()
        self.encoder = encoder
        away = torch.where(center < 0, -_LEAST, _LEAST)
        self.register_buffer("center", torch.where(center.abs() < _LEAST, away, center))

    def forward(self, images: Images) -> Losses:
        """The squared distance of each image to the center."""
        return (self.encoder(images) - self.center).square().sum(1, keepdim=True)
