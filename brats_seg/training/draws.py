"""Random parameters of the transforms of a batch, from a counter-based generator.

The parameters of a draw depend on the seed, the epoch and the draw's number within the epoch alone: not on
which other draws share its batch, nor on the rank.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int64

from brats_seg.core.augmentation import Augment
from brats_seg.core.shapes import Ids

NOISE_TABLE = 1 << 22
"""Normal numbers drawn once; a noise field is a stretch of them. Drawing a field anew costs 8 times as much.
"""
STREAM = 0xA06
"""Keeps these random numbers apart from those of the samplers, which share the seed."""
_DROPOUT_STREAM = 0xA07
"""Modality dropout has its own numbers: with it on, the other transforms stay what they were."""
_COLOR_STREAM = 0xA08
"""Numbers of contrast, bias field, low resolution and inverted gamma."""
BIAS_DEGREE = 3
"""The degrees of a product of polynomials in a bias field sum up to 1, 2 or 3, as in MONAI's RandBiasField
(its default).
"""
_JITTER_STREAM = 0xA09
"""Jitter has its own numbers for the same reason."""


@dataclass(frozen=True)
class Parameters:
    """What to do to each of B draws; M modalities, D patch axes. Identity values where a draw is left
    alone.
    """

    flip: Bool[np.ndarray, "b d"]
    """Axes to reverse."""
    affine: Bool[np.ndarray, " b"]
    """Whether to rotate and scale."""
    angle_radians: Float[np.ndarray, "b turns"]
    """One angle in the plane of a 2-D patch; for 3-D one in each of `_PLANES`: (Y, X), (Z, X), (Z, Y)."""
    scale: Float[np.ndarray, " b"]
    """Magnification; above 1 things grow."""
    resolution: Float[np.ndarray, "b m"]
    """Voxels a side of the coarser image, as a share of the patch's."""
    place: Float[np.ndarray, "b d"]
    """Where the drawn voxel lies on each axis of the patch, in shares of the side from the middle: -0.5 to
    0.5; 0 is the center.
    """
    sharpness: Float[np.ndarray, "b m"]
    bias: Float[np.ndarray, "b m *degrees"]
    """Coefficients of the products of Legendre polynomials of degree 0 to 3 along each axis; see
    `bias_field`.
    """
    contrast: Float[np.ndarray, "b m"]
    gamma: Float[np.ndarray, "b m"]
    inverted: Bool[np.ndarray, " b"]
    """Whether gamma bends the inverted image."""
    gain: Float[np.ndarray, "b m"]
    shift: Float[np.ndarray, "b m"]
    noise_sd: Float[np.ndarray, "b m"]
    noise_start: Int64[np.ndarray, "b m"]
    """Where in the noise table a field begins."""
    kept: Bool[np.ndarray, "b m"]
    """Modalities that are not set to 0."""

    def part(self, rows: slice) -> "Parameters":
        """The parameters of some of the draws."""
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
    each by its own coin of `intensity_probability`, then for each modality its own value. Scales, gains,
    contrasts and gammas are uniform in their logarithm, so that twice and half are equally likely. Modalities
    are dropped each by its own coin; where all would be, a random one is kept. `jitter` is the middle share
    of the patch that the drawn voxel lies in, uniformly.
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
    """Low resolution, bias field, contrast and inverted gamma, from their own stream: with them on, the other
    transforms stay what they were.
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
    """Which modalities stay (B, M); where every coin says drop, the one with the highest number does."""
    if dropout == 0:
        return np.ones((len(positions), n_modalities), bool)
    coins = _uniform(seed, epoch, positions, n_modalities, stream=_DROPOUT_STREAM)
    return coins >= np.minimum(dropout, coins.max(axis=1, keepdims=True))


def _uniform(seed: int, epoch: int, positions: np.ndarray, n: int, *, stream: int = STREAM) -> np.ndarray:
    """`n` uniform numbers in [0, 1) for each position, float64 (B, n): a pure function of seed, epoch and
    position.

    Philox turns a counter into four words, so that the numbers of a position are found without those before
    it (Salmon et al. 2011).
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
