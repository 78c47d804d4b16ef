"""Transforms of the intensities of a batch, by given parameters.

Air (every modality exactly 0) stays exactly 0, as in a bank and in prediction.
"""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from brats_seg.training.draws import BIAS_DEGREE, NOISE_TABLE, STREAM

_RANGE_FLOOR = 1e-7
_TAPS = (0.402620, 0.244201, 0.054489)
"""A Gaussian with standard deviation 1 at distances 0, 1 and 2; over both sides the weights sum to 1."""


def per_channel(values: Tensor) -> tuple[int, ...]:
    """The shape of one number for each example and channel that can be multiplied with `values`."""
    return (-1, values.shape[1], *[1] * (values.dim() - 2))


def change_intensities(planar: Tensor, sent: dict[str, Tensor]) -> None:
    """Apply low resolution, sharpness, bias field, contrast, gamma, gain and shift, and noise to the brain
    voxels, in this order.
    """
    if "changed" not in sent:
        return
    rows = sent["changed"]
    values = planar.index_select(0, rows)
    # Products with 0 or 1 replace masks: a mask that is the same for all modalities takes five times as long.
    brain = (values.abs().amax(1, keepdim=True) > 0).to(values.dtype)
    column = partial(_column, sent, per_channel(planar))
    change = partial(_change, sent, values, brain)
    change("resolution", lambda v, _: _coarsen(v, sent))
    change("sharpness", lambda v, brain: _change_sharpness(v, sharpness=column("sharpness.by"), brain=brain))
    change("bias", lambda v, _: v.mul_(bias_field(sent["bias.by"], planar.shape[2:])))
    change("contrast", lambda v, brain: _change_contrast(v, factor=column("contrast.by"), brain=brain))
    inverted = (
        sent["gamma.inverted"].reshape(-1, *[1] * (planar.dim() - 1)) if "gamma.inverted" in sent else None
    )
    change(
        "gamma", lambda v, brain: _change_gamma(v, gamma=column("gamma.by"), inverted=inverted, brain=brain)
    )
    if "level.rows" in sent:
        values.mul_(column("level.gain")).add_(column("level.shift"))
    change("noise", lambda v, _: v.add_(column("noise.by") * _noise(sent["noise.start"], planar.shape[2:])))
    planar.index_copy_(0, rows, values.mul_(brain))


def _column(sent: dict[str, Tensor], shape: tuple[int, ...], name: str) -> Tensor:
    """A parameter in the shape that multiplies the patches."""
    return sent[name].reshape(shape)


def _change(
    sent: dict[str, Tensor],
    values: Tensor,
    brain: Tensor,
    name: str,
    transform: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Apply a transform, in place, to the patches that drew it."""
    if (among := sent.get(f"{name}.rows")) is not None:
        values.index_copy_(0, among, transform(values.index_select(0, among), brain.index_select(0, among)))


def coarse_places(resolution: np.ndarray, shape: torch.Size, *, first_axis: int) -> dict[str, np.ndarray]:
    """The position of each voxel of an axis in the image of low resolution: the two neighbor voxels, and the
    distance from the first.

    Only axes from `first_axis` on are changed; the slices of a thin stack stay. An axis of n voxels is
    sampled at round(n x resolution) positions by nearest neighbor, and then interpolated back linearly.
    """
    places = {}
    for axis in range(first_axis, len(shape)):
        n = shape[axis]
        n_coarse = np.maximum(np.rint(n * resolution), 1)[..., None]
        at = np.clip((np.arange(n) + 0.5) * n_coarse / n - 0.5, 0, n_coarse - 1)
        first = np.floor(at)
        for name, coarse in (("near", first), ("far", np.minimum(first + 1, n_coarse - 1))):
            places[f"resolution.{name}{axis}"] = ((coarse + 0.5) * n / n_coarse).astype(np.int64)
        places[f"resolution.share{axis}"] = at - first
    return places


def _coarsen(values: Tensor, sent: dict[str, Tensor]) -> Tensor:
    """Simulate a scan of lower resolution for each modality, one axis after the other (nnU-Net's simulated
    low resolution).

    At the edge of the brain the air, which is 0, is included in the interpolation, as in nnU-Net.
    """
    for axis in range(values.dim() - 2):
        if f"resolution.share{axis}" not in sent:
            continue
        shape = [*values.shape[:2], *[1] * axis, values.shape[axis + 2], *[1] * (values.dim() - 3 - axis)]
        near, far = (
            values.gather(axis + 2, sent[f"resolution.{name}{axis}"].reshape(shape).expand(values.shape))
            for name in ("near", "far")
        )
        values = near + sent[f"resolution.share{axis}"].reshape(shape) * (far - near)
    return values


def bias_field(
    coefficients: Float[Tensor, "b m *degrees"], shape: tuple[int, ...]
) -> Float[Tensor, "b m *patch"]:
    """The exponential of a sum of products of Legendre polynomials over the patch. The patch ranges from -1
    to 1 along each axis.

    This is the field of MONAI's RandBiasField (after Van Leemput et al. 1999). The terms are summed in a
    fixed order, because the last bits of a matrix product depend on the number of patches.
    """
    field = coefficients
    for axis in reversed(range(len(shape))):
        along = _legendre(shape[axis], coefficients.device).reshape(
            -1, shape[axis], *[1] * (len(shape) - 1 - axis)
        )
        terms = [
            field.select(axis + 2, degree).unsqueeze(axis + 2) * along[degree]
            for degree in range(BIAS_DEGREE + 1)
        ]
        field = terms[0] + terms[1] + terms[2] + terms[3]
    return field.exp()


@cache
def _legendre(n: int, device: torch.device) -> Tensor:
    """Legendre polynomials of degree 0 to 3 at n points from -1 to 1, float32 (4, n)."""
    values = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, n), BIAS_DEGREE).T
    return torch.from_numpy(values.astype(np.float32)).to(device)


def _change_sharpness(values: Tensor, *, sharpness: Tensor, brain: Tensor) -> Tensor:
    """Add `sharpness` times the difference between the patch and its blurred version (Gaussian of 1 voxel).
    The value -1 gives the blurred patch.

    The Gaussian uses only the brain voxels in the patch. Sharpness and noise helped most to segment MRI of
    other scanners (Zhang et al., BigAug, IEEE TMI 2020, table III).
    """
    return values + sharpness * (values - _blur(values) / _blur(brain).clamp_(min=_RANGE_FLOOR))


def _blur(values: Tensor) -> Tensor:
    """A Gaussian of 1 voxel with 5 weights along each patch axis; the values outside the patch are 0.

    It is computed by shifted sums, because the last bits of a convolution depend on the number of patches.
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


def _change_contrast(values: Tensor, *, factor: Tensor, brain: Tensor) -> Tensor:
    """Multiply the difference of each modality from its mean, and clip the result to the lowest and highest
    value of the modality (nnU-Net's contrast).

    Mean, lowest and highest value are computed over the brain voxels of the patch.
    """
    axes = tuple(range(2, values.dim()))
    mean = (values * brain).sum(axes, keepdim=True) / brain.sum(axes, keepdim=True).clamp(min=1)
    lowest, highest = _brain_range(values, brain)
    return ((values - mean) * factor + mean).clamp_(min=lowest, max=highest)


def _brain_range(values: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each modality (B, M, 1, ...) over the brain voxels; 0 if the patch has no
    brain voxel.
    """
    axes = tuple(range(2, values.dim()))
    far = (1 - brain) * torch.finfo(values.dtype).max
    some = brain.amax(axes, keepdim=True)
    return (values + far).amin(axes, keepdim=True) * some, (values - far).amax(axes, keepdim=True) * some


def _change_gamma(values: Tensor, *, gamma: Tensor, inverted: Tensor | None, brain: Tensor) -> Tensor:
    """Scale each modality to 0..1 over the brain voxels of the patch, raise it to the power gamma, and
    restore its mean and standard deviation.

    This is MONAI's AdjustContrast with `retain_stats` (and `invert_image`) over the voxels that are not air.
    If inverted (B, 1, ...), the power is applied to 1 minus the scaled image, and the result is inverted
    again.
    """
    axes = tuple(range(2, values.dim()))
    n_brain = brain.sum(axes, keepdim=True).clamp(min=1)
    lowest, highest = _brain_range(values, brain)
    bent = ((values - lowest) / (highest - lowest + _RANGE_FLOOR)).clamp_(0, 1)
    if inverted is None:
        bent.pow_(gamma)
    else:
        start, sign = inverted.to(values.dtype), 1 - 2 * inverted.to(values.dtype)
        bent = bent.mul_(sign).add_(start).pow_(gamma).mul_(sign).add_(start)
    bent.mul_(brain)
    mean, mean_bent = ((v * brain).sum(axes, keepdim=True) / n_brain for v in (values, bent))
    spread, spread_bent = (
        ((v - m).mul_(brain).square_().sum(axes, keepdim=True) / n_brain).sqrt_()
        for v, m in ((values, mean), (bent, mean_bent))
    )
    return (bent - mean_bent) * (spread / (spread_bent + _RANGE_FLOOR)) + mean


@cache
def _noise_table(device: torch.device, n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(STREAM)).to(device)


def _noise(starts: Tensor, shape: torch.Size) -> Tensor:
    """Normal random numbers (B, M, *shape): for each start a section of the table."""
    n = shape.numel()
    table = _noise_table(starts.device, NOISE_TABLE + n)
    return table.unfold(0, n, 1)[starts.ravel()].reshape(*starts.shape, *shape)
