"""Random parameters of the transforms of a batch, from a counter-based generator.

The parameters of a draw depend only on the seed, the epoch and the number of the draw in the epoch. They do
not depend on the other draws of the batch or on the rank.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int64

from brats_seg.core.augmentation import Augment
from brats_seg.core.shapes import Ids

NOISE_TABLE = 1 << 22
"""Number of normal random numbers that are drawn once. A noise field is a section of this table. Drawing a
new field each time takes 8 times as long.
"""
STREAM = 0xA06
"""Separates these random numbers from those of the samplers, which use the same seed."""
_DROPOUT_STREAM = 0xA07
"""Modality dropout has its own random numbers, so it does not change the other transforms."""
_COLOR_STREAM = 0xA08
"""The random numbers of contrast, bias field, low resolution and inverted gamma."""
BIAS_DEGREE = 3
"""The degrees of a product of polynomials in a bias field have the sum 1, 2 or 3, as in MONAI's RandBiasField
(its default).
"""
_JITTER_STREAM = 0xA09
"""Jitter has its own random numbers for the same reason."""


@dataclass(frozen=True)
class Parameters:
    """The transforms of each of B draws, with M modalities and D patch axes. A draw without a transform has
    identity values.
    """

    flip: Bool[np.ndarray, "b d"]
    """Axes to flip."""
    affine: Bool[np.ndarray, " b"]
    """Whether to rotate and scale."""
    angle_radians: Float[np.ndarray, "b turns"]
    """One angle for a 2-D patch; for a 3-D patch one angle in each of `_PLANES`: (Y, X), (Z, X), (Z, Y)."""
    scale: Float[np.ndarray, " b"]
    """Magnification; with a value above 1 structures become larger."""
    resolution: Float[np.ndarray, "b m"]
    """Side of the coarser image in voxels, as a share of the side of the patch."""
    place: Float[np.ndarray, "b d"]
    """Position of the drawn voxel on each axis of the patch, relative to the middle, as a share of the side:
    -0.5 to 0.5; 0 is the center.
    """
    sharpness: Float[np.ndarray, "b m"]
    bias: Float[np.ndarray, "b m *degrees"]
    """Coefficients of the products of Legendre polynomials of degree 0 to 3 along each axis; see
    `bias_field`.
    """
    contrast: Float[np.ndarray, "b m"]
    gamma: Float[np.ndarray, "b m"]
    inverted: Bool[np.ndarray, " b"]
    """Whether gamma is applied to the inverted image."""
    gain: Float[np.ndarray, "b m"]
    shift: Float[np.ndarray, "b m"]
    noise_sd: Float[np.ndarray, "b m"]
    noise_start: Int64[np.ndarray, "b m"]
    """Start of a noise field in the noise table."""
    kept: Bool[np.ndarray, "b m"]
    """Modalities that are kept; the others are set to 0."""

    def part(self, rows: slice) -> "Parameters":
        """The parameters of the given draws."""
        return replace(self, **{one.name: getattr(self, one.name)[rows] for one in fields(self)})


def draw_parameters(
    augment: Augment,
    *,
    seed: int,
    epoch: int,
    positions: Ids,
    n_modalities: int,
    n_dims: int,
    jitter: float = 0.0,
) -> Parameters:
    """Parameters of the draws at the given positions of an epoch.

    Flips: each axis with probability `augment.flip`. Rotation and scaling: together, with
    `affine_probability`. Low resolution, sharpness, bias field, contrast, gamma, gain with shift, and noise:
    each with `intensity_probability`, independently, and then with a separate value for each modality.
    Scales, gains, contrasts and gammas are uniform in their logarithm, so that 2 and 1/2 are equally
    probable. Each modality is dropped independently; if all would be dropped, a random modality is kept. The
    drawn voxel lies uniformly in the middle share `jitter` of the patch.
    """
    n_turns = 1 if n_dims == 2 else 3
    coins, angles, values = np.split(
        _uniform(seed, epoch, positions, 8 + n_turns + 1 + 6 * n_modalities), [8, 8 + n_turns + 1], axis=1
    )
    affine = coins[:, 3] < (
        augment.affine_probability if augment.rotate_degrees > 0 or augment.scale != (1.0, 1.0) else 0
    )
    sharpness, gamma, gain, shift, noise, start = np.split(values, 6, axis=1)
    chosen = coins[:, 4:8, None] < augment.intensity_probability
    return Parameters(
        flip=coins[:, :n_dims] < augment.flip,
        affine=affine,
        angle_radians=np.where(
            affine[:, None], np.deg2rad(augment.rotate_degrees) * (2 * angles[:, :-1] - 1), 0.0
        ),
        scale=np.where(affine, _log_between(angles[:, -1], augment.scale), 1.0),
        **_more_intensities(
            augment, seed=seed, epoch=epoch, positions=positions, n_modalities=n_modalities, n_dims=n_dims
        ),
        place=jitter * (_uniform(seed, epoch, positions, n_dims, stream=_JITTER_STREAM) - 0.5),
        sharpness=np.where(chosen[:, 0], _between(sharpness, augment.sharpness), 0.0),
        gamma=np.where(chosen[:, 1], _log_between(gamma, augment.gamma), 1.0),
        gain=np.where(chosen[:, 2], _log_between(gain, augment.gain), 1.0),
        shift=np.where(chosen[:, 2], _between(shift, augment.shift), 0.0),
        noise_sd=np.where(chosen[:, 3], _between(noise, augment.noise_sd), 0.0),
        noise_start=(start * NOISE_TABLE).astype(np.int64),
        kept=_kept(
            augment.modality_dropout, seed=seed, epoch=epoch, positions=positions, n_modalities=n_modalities
        ),
    )


def _more_intensities(
    augment: Augment, *, seed: int, epoch: int, positions: np.ndarray, n_modalities: int, n_dims: int
) -> dict[str, np.ndarray]:
    """Low resolution, bias field, contrast and inverted gamma. They have their own random stream, so they do
    not change the other transforms.
    """
    degrees = np.indices([BIAS_DEGREE + 1] * n_dims).sum(axis=0)
    used = (degrees >= 1) & (degrees <= BIAS_DEGREE)
    n_terms, shape = int(used.sum()), (len(positions), n_modalities)
    numbers = _uniform(seed, epoch, positions, 4 + n_modalities * (3 + n_terms), stream=_COLOR_STREAM)
    coins, values, terms = np.split(numbers, [4, 4 + 3 * n_modalities], axis=1)
    resolution, contrast, size = np.split(values, 3, axis=1)
    chosen = coins[:, :3, None] < augment.intensity_probability
    size = np.where(chosen[:, 2], _between(size, augment.bias_field), 0.0)
    bias = np.zeros((*shape, *used.shape))
    bias[:, :, used] = size[:, :, None] * (2 * terms.reshape(*shape, n_terms) - 1)
    return {
        "resolution": np.where(chosen[:, 0], _between(resolution, augment.low_resolution), 1.0),
        "contrast": np.where(chosen[:, 1], _log_between(contrast, augment.contrast), 1.0),
        "bias": bias,
        "inverted": coins[:, 3] < augment.gamma_inverted,
    }


def _kept(dropout: float, *, seed: int, epoch: int, positions: np.ndarray, n_modalities: int) -> np.ndarray:
    """The modalities that are kept (B, M). If all would be dropped, the modality with the largest random
    number is kept.
    """
    if dropout == 0:
        return np.ones((len(positions), n_modalities), bool)
    coins = _uniform(seed, epoch, positions, n_modalities, stream=_DROPOUT_STREAM)
    return coins >= np.minimum(dropout, coins.max(axis=1, keepdims=True))


def _uniform(seed: int, epoch: int, positions: np.ndarray, n: int, *, stream: int = STREAM) -> np.ndarray:
    """`n` uniform numbers in [0, 1) for each position, float64 (B, n): a pure function of seed, epoch and
    position.

    Philox computes four words from a counter, so the numbers of a position do not need the numbers before it
    (Salmon et al. 2011).
    """
    words = -(-n // 4) * 4
    first, last = int(positions.min()), int(positions.max())
    key = np.array([seed & (2**64 - 1), stream << 32 | epoch], np.uint64)
    generator = np.random.Philox(key=key, counter=np.array([first * words // 4, 0, 0, 0], np.uint64))
    raw = generator.random_raw((last - first + 1) * words).reshape(-1, words)[positions - first, :n]
    return (raw >> np.uint64(11)) * 2.0**-53


def _between(unit: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + unit * (bounds[1] - bounds[0])


def _log_between(unit: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return np.exp(_between(unit, (np.log(bounds[0]), np.log(bounds[1]))))
