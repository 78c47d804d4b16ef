"""Random transforms of a batch, from a counter-based generator.

Randomness draws parameters (`draw_parameters`), application is deterministic (`apply`). The parameters of a draw depend on the seed, the
epoch and the draw's number within the epoch alone: not on which other draws share its batch, nor on the rank.

Air (every modality exactly 0) stays exactly 0 through the intensity transforms: a bank stores it so, and so does prediction.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from brats_seg.config import Augment
from brats_seg.core.shapes import Ids
from brats_seg.core.tensors import Inputs, Targets
from brats_seg.scans.labels import OUTSIDE

NOISE_TABLE = 1 << 22
"""Normal numbers drawn once; a noise field is a stretch of them. Drawing a field anew costs 8 times as much."""
_STREAM = 0xA06
"""Keeps these random numbers apart from those of the samplers, which share the seed."""
_DROPOUT_STREAM = 0xA07
"""Modality dropout has its own numbers: with it on, the other transforms stay what they were."""
_RANGE_FLOOR = 1e-7
_TAPS = (0.402620, 0.244201, 0.054489)
"""A Gaussian of standard deviation 1 at 0, 1 and 2, both sides summing to 1."""


@dataclass(frozen=True)
class Parameters:
    """What to do to each of B draws; M modalities, D patch axes. Identity values where a draw is left alone."""

    flip: Bool[np.ndarray, "b d"]
    """Axes to reverse."""
    affine: Bool[np.ndarray, " b"]
    """Whether to rotate and scale."""
    angle_radians: Float[np.ndarray, "b turns"]
    """One angle in the plane of a 2-D patch; for 3-D one in each plane: (Y, X), (Z, X), (Z, Y)."""
    scale: Float[np.ndarray, " b"]
    """Magnification; above 1 things grow."""
    sharpness: Float[np.ndarray, "b m"]
    gamma: Float[np.ndarray, "b m"]
    gain: Float[np.ndarray, "b m"]
    shift: Float[np.ndarray, "b m"]
    noise_sd: Float[np.ndarray, "b m"]
    noise_start: Int64[np.ndarray, "b m"]
    """Where in the noise table a field begins."""
    kept: Bool[np.ndarray, "b m"]
    """Modalities that are not set to 0."""


def draw_parameters(augment: Augment, *, seed: int, epoch: int, positions: Ids, n_modalities: int, n_dims: int) -> Parameters:
    """Parameters of the draws at the given positions of an epoch.

    Flips: each axis with probability `augment.flip`. Rotation and scaling: together, with `affine_probability`. Sharpness, gamma, gain with
    shift, and noise: each by its own coin of `intensity_probability`, then for each modality its own value. Scales, gains and gammas are
    uniform in their logarithm, so that twice and half are equally likely. Modalities are dropped each by its own coin; where all would
    be, a random one is kept.
    """
    n_turns = 1 if n_dims == 2 else 3
    coins, angles, values = np.split(_uniform(seed, epoch, positions, 8 + n_turns + 1 + 6 * n_modalities), [8, 8 + n_turns + 1], axis=1)
    affine = coins[:, 3] < (augment.affine_probability if augment.rotate_degrees > 0 or augment.scale != (1.0, 1.0) else 0)
    sharpness, gamma, gain, shift, noise, start = np.split(values, 6, axis=1)
    chosen = coins[:, 4:8, None] < augment.intensity_probability
    return Parameters(
        flip=coins[:, :n_dims] < augment.flip,
        affine=affine,
        angle_radians=np.where(affine[:, None], np.deg2rad(augment.rotate_degrees) * (2 * angles[:, :-1] - 1), 0.0),
        scale=np.where(affine, _log_between(angles[:, -1], augment.scale), 1.0),
        sharpness=np.where(chosen[:, 0], _between(sharpness, augment.sharpness), 0.0),
        gamma=np.where(chosen[:, 1], _log_between(gamma, augment.gamma), 1.0),
        gain=np.where(chosen[:, 2], _log_between(gain, augment.gain), 1.0),
        shift=np.where(chosen[:, 2], _between(shift, augment.shift), 0.0),
        noise_sd=np.where(chosen[:, 3], _between(noise, augment.noise_sd), 0.0),
        noise_start=(start * NOISE_TABLE).astype(np.int64),
        kept=_kept(augment.modality_dropout, seed=seed, epoch=epoch, positions=positions, n_modalities=n_modalities),
    )


def apply(inputs: Inputs, targets: Targets, *, parameters: Parameters) -> tuple[Inputs, Targets]:
    """The transformed batch: flips, rotation and scaling, intensities, dropped modalities. Changes the tensors in place and returns them.

    Works on a planar copy: a modality of a patch then lies in one piece, 2 to 30 times faster for these transforms than channels last.
    """
    planar = inputs.contiguous()
    _flip(planar, targets, parameters)
    _affine(planar, targets, parameters)
    _intensity(planar, parameters)
    _drop(planar, parameters)
    return inputs.copy_(planar), targets


class Augmenter:
    """Augmentation with its knobs and seed; does nothing where no knob is on."""

    def __init__(self, augment: Augment, *, seed: int) -> None:
        """Take the knobs; the random numbers follow from the seed."""
        self.augment = augment
        self.seed = seed
        moves = augment.affine_probability > 0 and (augment.rotate_degrees > 0 or augment.scale != (1.0, 1.0))
        ones = (augment.gain, augment.gamma) != ((1.0, 1.0),) * 2
        zeros = (augment.shift, augment.sharpness, augment.noise_sd) != ((0.0, 0.0),) * 3
        colors = (ones or zeros) and augment.intensity_probability > 0
        self.is_on = augment.flip > 0 or moves or colors or augment.modality_dropout > 0

    def __call__(self, inputs: Inputs, targets: Targets, *, epoch: int, positions: Ids) -> tuple[Inputs, Targets]:
        """Transform a batch whose draws stand at these positions of the epoch, in place."""
        if not self.is_on:
            return inputs, targets
        parameters = draw_parameters(
            self.augment, seed=self.seed, epoch=epoch, positions=positions, n_modalities=inputs.shape[1], n_dims=inputs.dim() - 2
        )
        return apply(inputs, targets, parameters=parameters)


def _kept(dropout: float, *, seed: int, epoch: int, positions: np.ndarray, n_modalities: int) -> np.ndarray:
    """Which modalities stay (B, M); where every coin says drop, the one with the highest number does."""
    if dropout == 0:
        return np.ones((len(positions), n_modalities), bool)
    coins = _uniform(seed, epoch, positions, n_modalities, stream=_DROPOUT_STREAM)
    return coins >= np.minimum(dropout, coins.max(axis=1, keepdims=True))


def _uniform(seed: int, epoch: int, positions: np.ndarray, n: int, *, stream: int = _STREAM) -> np.ndarray:
    """`n` uniform numbers in [0, 1) for each position, float64 (B, n): a pure function of seed, epoch and position.

    Philox turns a counter into four words, so that the numbers of a position are found without those before it (Salmon et al. 2011).
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


def _flip(planar: Tensor, targets: Tensor, parameters: Parameters) -> None:
    for axis in range(parameters.flip.shape[1]):
        rows = _rows(parameters.flip[:, axis], planar)
        planar[rows] = planar[rows].flip(axis + 2)
        targets[rows] = targets[rows].flip(axis + 1)


def _affine(planar: Tensor, targets: Tensor, parameters: Parameters) -> None:
    """Rotate and scale about the middle of the patch: the image linearly with 0 beyond the patch, labels by nearest neighbor."""
    if not parameters.affine.any():
        return
    rows = _rows(parameters.affine, planar)
    matrices = _affine_matrices(parameters, planar.shape[2:])[parameters.affine]
    moved = planar[rows]
    grid = F.affine_grid(torch.from_numpy(matrices).to(planar), list(moved.shape), align_corners=False)
    planar[rows] = F.grid_sample(moved, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Labels are sampled as 255 - label, so that the zeros beyond the patch come back as 255, outside.
    inverted = (OUTSIDE - targets[rows])[:, None].to(planar.dtype)
    inverted = F.grid_sample(inverted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    targets[rows] = OUTSIDE - inverted[:, 0].to(torch.uint8)


def _affine_matrices(parameters: Parameters, shape: torch.Size) -> np.ndarray:
    """Matrices (B, D, D + 1) from output to input, in the coordinates of `grid_sample`: x first, each axis from -1 to 1."""
    n, n_dims = len(parameters.affine), len(shape)
    linear = np.broadcast_to(np.eye(n_dims), (n, n_dims, n_dims))
    for turn, (one, other) in enumerate(((0, 1), (0, 2), (1, 2))[: parameters.angle_radians.shape[1]]):
        cos, sin = np.cos(parameters.angle_radians[:, turn]), np.sin(parameters.angle_radians[:, turn])
        rotation = np.tile(np.eye(n_dims), (n, 1, 1))
        rotation[:, one, one] = rotation[:, other, other] = cos
        rotation[:, one, other], rotation[:, other, one] = -sin, sin
        linear = linear @ rotation
    sides = np.array(shape[::-1], float)
    linear = linear / parameters.scale[:, None, None] * (sides[None, None, :] / sides[None, :, None])
    return np.concatenate([linear, np.zeros((n, n_dims, 1))], axis=2)


def _intensity(planar: Tensor, parameters: Parameters) -> None:
    """Sharpness, then gamma, then gain and shift, then noise, on the brain's voxels."""
    focus = (parameters.sharpness != 0).any(1)
    contrast = (parameters.gamma != 1).any(1)
    level = (parameters.gain != 1).any(1) | (parameters.shift != 0).any(1)
    noise = (parameters.noise_sd != 0).any(1)
    changed = focus | contrast | level | noise
    if not changed.any():
        return
    rows = _rows(changed, planar)
    values = planar[rows]
    air = (values == 0).all(1, keepdim=True)
    per_channel = (-1, planar.shape[1], *[1] * (planar.dim() - 2))

    def column(array: np.ndarray, of: np.ndarray) -> Tensor:
        return torch.from_numpy(array[of]).to(planar).reshape(per_channel)

    if focus.any():
        among = _rows(focus[changed], planar)
        values[among] = _change_sharpness(values[among], sharpness=column(parameters.sharpness, focus), air=air[among])
    if contrast.any():
        among = _rows(contrast[changed], planar)
        values[among] = _change_contrast(values[among], gamma=column(parameters.gamma, contrast), air=air[among])
    if level.any():
        values.mul_(column(parameters.gain, changed)).add_(column(parameters.shift, changed))
    if noise.any():
        among = _rows(noise[changed], planar)
        values[among] += column(parameters.noise_sd, noise) * _noise(parameters.noise_start[noise], planar.shape[2:], planar.device)
    planar[rows] = values.masked_fill_(air, 0)


def _change_sharpness(values: Tensor, *, sharpness: Tensor, air: Tensor) -> Tensor:
    """Add `sharpness` times what a Gaussian of 1 voxel takes away; -1 leaves the blurred patch.

    The Gaussian is over the brain's voxels in the patch: neither air nor what is beyond the patch has a part. Sharpness and noise were
    what helped most for segmenting MRI of other scanners (Zhang et al., BigAug, IEEE TMI 2020, table III).
    """
    brain = (~air).to(values.dtype)
    return values + sharpness * (values - _blur(values) / _blur(brain).clamp_(min=_RANGE_FLOOR))


def _blur(values: Tensor) -> Tensor:
    """A Gaussian of 1 voxel, 5 taps wide, along each patch axis; 0 beyond the patch.

    By shifted sums: a convolution's last bits depend on the number of patches it is given.
    """
    for axis in range(2, values.dim()):
        n = values.shape[axis]
        blurred = values * _TAPS[0]
        for distance, weight in enumerate(_TAPS[1:n], start=1):
            near, far = (values.narrow(axis, start, n - distance) for start in (0, distance))
            blurred.narrow(axis, distance, n - distance).add_(near, alpha=weight)
            blurred.narrow(axis, 0, n - distance).add_(far, alpha=weight)
        values = blurred
    return values


def _change_contrast(values: Tensor, *, gamma: Tensor, air: Tensor) -> Tensor:
    """Raise each modality, stretched to 0..1 over the patch's brain voxels, to the power gamma; mean and spread are restored.

    As MONAI's AdjustContrast with `retain_stats`, over the voxels that are not air: gamma bends the histogram, gain and shift move it.
    """
    axes = tuple(range(2, values.dim()))
    n_brain = (~air).sum(axes, keepdim=True).clamp(min=1)
    lowest = values.masked_fill(air, torch.inf).amin(axes, keepdim=True)
    highest = values.masked_fill(air, -torch.inf).amax(axes, keepdim=True)
    unit = ((values - lowest) / (highest - lowest + _RANGE_FLOOR)).clamp_(0, 1)
    bent = unit.pow_(gamma).masked_fill_(air, 0)
    mean, mean_bent = (v.masked_fill(air, 0).sum(axes, keepdim=True) / n_brain for v in (values, bent))
    spread, spread_bent = (
        ((v - m).masked_fill_(air, 0).square_().sum(axes, keepdim=True) / n_brain).sqrt_() for v, m in ((values, mean), (bent, mean_bent))
    )
    return (bent - mean_bent) * (spread / (spread_bent + _RANGE_FLOOR)) + mean


@cache
def _noise_table(device: torch.device, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(_STREAM)
    return torch.randn(n, generator=generator).to(device)


def _noise(starts: np.ndarray, shape: torch.Size, device: torch.device) -> Tensor:
    """Normal numbers (B, M, *shape): for each start a stretch of the table."""
    n = shape.numel()
    table = _noise_table(device, NOISE_TABLE + n)
    return table.unfold(0, n, 1)[torch.from_numpy(starts.ravel()).to(device)].reshape(*starts.shape, *shape)


def _drop(planar: Tensor, parameters: Parameters) -> None:
    if not parameters.kept.all():
        planar[torch.from_numpy(~parameters.kept).to(planar.device)] = 0


def _rows(chosen: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen)).to(like.device)
