"""Random transforms of a batch, from a counter-based generator.

Randomness draws parameters (`draw_parameters`), application is deterministic: the bank gathers each patch
rotated, scaled and moved (`patch_maps`), then `apply` flips it and changes its intensities. The parameters of
a draw depend on the seed, the epoch and the draw's number within the epoch alone: not on which other draws
share its batch, nor on the rank.

Air (every modality exactly 0) stays exactly 0 through the intensity transforms: a bank stores it so, and so
does prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from brats_seg.bank.gather import PatchMaps
from brats_seg.core.augmentation import Augment
from brats_seg.core.shapes import Ids
from brats_seg.core.tensors import Inputs, Targets

NOISE_TABLE = 1 << 22
"""Normal numbers drawn once; a noise field is a stretch of them. Drawing a field anew costs 8 times as much.
"""
_STREAM = 0xA06
"""Keeps these random numbers apart from those of the samplers, which share the seed."""
_DROPOUT_STREAM = 0xA07
"""Modality dropout has its own numbers: with it on, the other transforms stay what they were."""
_COLOR_STREAM = 0xA08
"""Numbers of contrast, bias field, low resolution and inverted gamma."""
_BIAS_DEGREE = 3
"""The degrees of a product of polynomials in a bias field sum up to 1, 2 or 3, as in MONAI's RandBiasField
(its default).
"""
_INTENSITIES = ("gain", "shift", "contrast", "gamma", "bias_field", "low_resolution", "sharpness", "noise_sd")
"""Knobs of the transforms of intensity."""
_JITTER_STREAM = 0xA09
"""Jitter has its own numbers for the same reason."""
_RANGE_FLOOR = 1e-7
_PLANES = ((1, 2), (0, 2), (0, 1))
"""Planes that a patch is turned in, as axes of (Z, Y, X); a 2-D patch in the first alone."""
_TAPS = (0.402620, 0.244201, 0.054489)
"""A Gaussian of standard deviation 1 at 0, 1 and 2, both sides summing to 1."""


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


def patch_maps(parameters: Parameters, *, patch_size: tuple[int, ...]) -> PatchMaps | None:
    """How the bank is to gather each patch: rotated and scaled about the middle of the patch, and moved by
    the jitter.

    The drawn voxel lies at its place in the rotated and scaled patch, to the nearest voxel.

    Args:
        parameters: of the batch.
        patch_size: (Y, X) or (Z, Y, X) in voxels.

    Returns:
        None where no patch of the batch is rotated, scaled or moved.
    """
    if not parameters.affine.any() and not parameters.place.any():
        return None
    n, n_dims = parameters.place.shape
    matrices = np.tile(np.eye(3), (n, 1, 1))
    for turn, (one, other) in enumerate(_PLANES[: parameters.angle_radians.shape[1]]):
        cos, sin = np.cos(parameters.angle_radians[:, turn]), np.sin(parameters.angle_radians[:, turn])
        rotation = np.tile(np.eye(3), (n, 1, 1))
        rotation[:, one, one] = rotation[:, other, other] = cos
        rotation[:, one, other], rotation[:, other, one] = -sin, sin
        matrices = matrices @ rotation
    matrices[:, 3 - n_dims :, 3 - n_dims :] /= parameters.scale[:, None, None]
    matrices[~parameters.affine] = np.eye(3)
    sides, from_middle = np.array(patch_size), np.zeros((n, 3))
    from_middle[:, 3 - n_dims :] = parameters.place * (sides - 1)
    offsets = -np.einsum("bij,bj->bi", matrices, from_middle)
    offsets[:, 3 - n_dims :] += (
        sides // 2 - (sides - 1) / 2
    )  # the center of an even side lies above its middle
    return PatchMaps(np.rint(offsets).astype(np.int64), matrices.astype(np.float32))


def apply(
    inputs: Inputs, targets: Targets, *, parameters: Parameters, n_slices: int = 1
) -> tuple[Inputs, Targets]:
    """The transformed batch: flips, intensities, dropped modalities. Changes the tensors in place and returns
    them.

    Works on a planar copy: a modality of a patch then lies in one piece, 2 to 30 times faster for these
    transforms than channels last. A 2-D patch of `n_slices` slices (slice by slice in the channels) is
    transformed as the thin volume that it is.
    """
    if n_slices == 1:
        planar = inputs.contiguous()
    else:
        planar = inputs.unflatten(1, (n_slices, -1)).transpose(1, 2).contiguous()
        # A bias field of degree 0 from slice to slice: the same in all of them.
        flat = np.zeros((*parameters.bias.shape[:2], *(_BIAS_DEGREE + 1,) * 3))
        flat[:, :, 0] = parameters.bias
        parameters = replace(parameters, bias=flat)
    sent = _sent(_plan(parameters, planar.shape[2:], first_coarse_axis=int(n_slices > 1)), planar.device)
    _flip(planar, targets, sent)
    _intensity(planar, sent)
    if "dropped" in sent:
        planar.masked_fill_(sent["dropped"].reshape(_per_channel(planar)), 0)
    return inputs.copy_(planar if n_slices == 1 else planar.transpose(1, 2).flatten(1, 2)), targets


class Augmenter:
    """Augmentation with its knobs and seed; does nothing where no knob is on."""

    def __init__(
        self,
        augment: Augment,
        *,
        seed: int,
        patch_size: tuple[int, ...],
        n_slices: int = 1,
        jitter: float = 0.0,
    ) -> None:
        """Take the knobs; the random numbers follow from the seed.

        Args:
            augment: what is drawn.
            seed: of the run.
            patch_size: (Y, X) or (Z, Y, X) in voxels.
            n_slices: slices that a 2-D patch has in its channels.
            jitter: middle share of the patch that the drawn voxel lies in; 0 for the center.
        """
        self.augment = augment
        self.seed = seed
        self.patch_size = patch_size
        self.n_slices = n_slices
        self.jitter = jitter
        moves = augment.affine_probability > 0 and (augment.rotate_degrees > 0 or augment.scale != (1.0, 1.0))
        defaults = Augment()
        colors = augment.intensity_probability > 0 and any(
            getattr(augment, name) != getattr(defaults, name) for name in _INTENSITIES
        )
        self.is_on = augment.flip > 0 or moves or colors or augment.modality_dropout > 0 or jitter > 0

    def draw(self, *, epoch: int, positions: Ids, n_modalities: int) -> Parameters | None:
        """Parameters of the draws at these positions of the epoch; None where no knob is on."""
        if not self.is_on:
            return None
        return draw_parameters(
            self.augment, seed=self.seed, epoch=epoch, positions=positions, n_modalities=n_modalities,
            n_dims=len(self.patch_size), jitter=self.jitter,
        )  # fmt: skip

    def maps(self, parameters: Parameters | None) -> PatchMaps | None:
        """What the bank gathers the batch with; see `patch_maps`."""
        return None if parameters is None else patch_maps(parameters, patch_size=self.patch_size)

    def __call__(
        self, inputs: Inputs, targets: Targets, *, parameters: Parameters | None
    ) -> tuple[Inputs, Targets]:
        """Flip a gathered batch and change its intensities, in place."""
        if parameters is None:
            return inputs, targets
        return apply(inputs, targets, parameters=parameters, n_slices=self.n_slices)


def _more_intensities(
    augment: Augment, *, seed: int, epoch: int, positions: np.ndarray, n_modalities: int, n_dims: int
) -> dict[str, np.ndarray]:
    """Low resolution, bias field, contrast and inverted gamma, from their own stream: with them on, the other
    transforms stay what they were.
    """
    degrees = np.indices([_BIAS_DEGREE + 1] * n_dims).sum(axis=0)
    used = (degrees >= 1) & (degrees <= _BIAS_DEGREE)
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


def _uniform(seed: int, epoch: int, positions: np.ndarray, n: int, *, stream: int = _STREAM) -> np.ndarray:
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


def _flip(planar: Tensor, targets: Tensor, sent: dict[str, Tensor]) -> None:
    for axis in range(-planar.dim() + 2, 0):
        if (rows := sent.get(f"flip{axis}")) is not None:
            planar.index_copy_(0, rows, planar.index_select(0, rows).flip(axis))
            targets.index_copy_(0, rows, targets.index_select(0, rows).flip(axis))


def _plan(parameters: Parameters, shape: torch.Size, *, first_coarse_axis: int = 0) -> dict[str, np.ndarray]:
    """What `_flip` and `_intensity` have to know, by name; a transform that no draw has is left out.

    `changed` are the rows of the batch that it works on. For each transform `name.rows` are its rows among
    those, and the other arrays have one entry for each of its rows.
    """
    p = parameters
    transforms: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {
        "resolution": ((p.resolution != 1).any(1), {}),
        "sharpness": ((p.sharpness != 0).any(1), {"by": p.sharpness}),
        "bias": ((p.bias != 0).reshape(len(p.bias), -1).any(1), {"by": p.bias}),
        "contrast": ((p.contrast != 1).any(1), {"by": p.contrast}),
        "gamma": (
            (p.gamma != 1).any(1),
            {"by": p.gamma, "inverted": p.inverted} if p.inverted.any() else {"by": p.gamma},
        ),
        "level": ((p.gain != 1).any(1) | (p.shift != 0).any(1), {}),
        "noise": ((p.noise_sd != 0).any(1), {"by": p.noise_sd, "start": p.noise_start}),
    }
    changed = np.logical_or.reduce([rows for rows, _ in transforms.values()])
    plan: dict[str, np.ndarray] = {}
    for name, (rows, arrays) in transforms.items():
        if rows.any():
            plan[f"{name}.rows"] = np.flatnonzero(rows[changed])
            plan |= {f"{name}.{key}": array[rows] for key, array in arrays.items()}
    if changed.any():
        plan["changed"] = np.flatnonzero(changed)
    if "level.rows" in plan:
        plan |= {"level.gain": p.gain[changed], "level.shift": p.shift[changed]}
    if "resolution.rows" in plan:
        plan |= _coarse_places(p.resolution[transforms["resolution"][0]], shape, first_axis=first_coarse_axis)
    for axis in range(-p.flip.shape[1], 0):
        if p.flip[:, axis].any():
            plan[f"flip{axis}"] = np.flatnonzero(p.flip[:, axis])
    if not p.kept.all():
        plan["dropped"] = ~p.kept
    return plan


def _sent(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays on the device, in one copy that the CPU does not wait for; float64 becomes float32."""
    arrays = {
        name: np.ascontiguousarray(a, np.float32 if a.dtype == np.float64 else a.dtype)
        for name, a in arrays.items()
    }
    # Each begins at a multiple of 8 bytes, so that it can be read as 8-byte numbers.
    starts = np.cumsum([0, *(-(-array.nbytes // 8) * 8 for array in arrays.values())]).tolist()
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, array in zip(starts, arrays.values(), strict=False):
        packed.numpy()[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = packed.to(device, non_blocking=True)
    return {
        name: there[start : start + array.nbytes].view(torch.from_numpy(array).dtype).reshape(array.shape)
        for start, (name, array) in zip(starts, arrays.items(), strict=False)
    }


def _per_channel(values: Tensor) -> tuple[int, ...]:
    return (-1, values.shape[1], *[1] * (values.dim() - 2))


def _intensity(planar: Tensor, sent: dict[str, Tensor]) -> None:
    """Low resolution, sharpness, bias field, contrast, gamma, gain and shift, then noise, on the brain's
    voxels.
    """
    if "changed" not in sent:
        return
    rows = sent["changed"]
    values = planar.index_select(0, rows)
    # Products with 0 or 1 instead of masks: a mask that is the same for all modalities takes five times as
    # long.
    brain = (values.abs().amax(1, keepdim=True) > 0).to(values.dtype)

    def column(name: str) -> Tensor:
        return sent[name].reshape(_per_channel(planar))

    def change(name: str, transform: Callable[[Tensor, Tensor], Tensor]) -> None:
        if (among := sent.get(f"{name}.rows")) is not None:
            values.index_copy_(
                0, among, transform(values.index_select(0, among), brain.index_select(0, among))
            )

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


def _coarse_places(resolution: np.ndarray, shape: torch.Size, *, first_axis: int) -> dict[str, np.ndarray]:
    """Where each voxel of an axis is read in the image of low resolution: between which two voxels, and how
    far from the first.

    Axes from `first_axis` on; the slices of a thin stack are left as they are. An axis of n voxels is sampled
    at round(n x resolution) places by nearest neighbor, and interpolated back linearly.
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
    """Each modality as if it had been scanned more coarsely (nnU-Net's simulated low resolution), an axis
    after the other.

    At the rim of the brain air, which is 0, has a part, as in nnU-Net.
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
    """The exponential of a sum of products of Legendre polynomials over the patch, which reaches from -1 to 1
    along each axis.

    The field of MONAI's RandBiasField (after Van Leemput et al. 1999). Summed in a fixed order: the last bits
    of a matrix product depend on the number of patches.
    """
    field = coefficients
    for axis in reversed(range(len(shape))):
        along = _legendre(shape[axis], coefficients.device).reshape(
            -1, shape[axis], *[1] * (len(shape) - 1 - axis)
        )
        terms = [
            field.select(axis + 2, degree).unsqueeze(axis + 2) * along[degree]
            for degree in range(_BIAS_DEGREE + 1)
        ]
        field = terms[0] + terms[1] + terms[2] + terms[3]
    return field.exp()


@cache
def _legendre(n: int, device: torch.device) -> Tensor:
    """Legendre polynomials of degree 0 to 3 at n places from -1 to 1, float32 (4, n)."""
    values = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, n), _BIAS_DEGREE).T
    return torch.from_numpy(values.astype(np.float32)).to(device)


def _change_sharpness(values: Tensor, *, sharpness: Tensor, brain: Tensor) -> Tensor:
    """Add `sharpness` times what a Gaussian of 1 voxel takes away; -1 leaves the blurred patch.

    The Gaussian is over the brain's voxels in the patch: neither air nor what is beyond the patch has a part.
    Sharpness and noise were what helped most for segmenting MRI of other scanners (Zhang et al., BigAug, IEEE
    TMI 2020, table III).
    """
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


def _change_contrast(values: Tensor, *, factor: Tensor, brain: Tensor) -> Tensor:
    """Multiply the distance of each modality from its mean, and cut it at its lowest and highest value
    (nnU-Net's contrast).

    Mean, lowest and highest are of the patch's brain voxels.
    """
    axes = tuple(range(2, values.dim()))
    mean = (values * brain).sum(axes, keepdim=True) / brain.sum(axes, keepdim=True).clamp(min=1)
    lowest, highest = _brain_range(values, brain)
    return ((values - mean) * factor + mean).clamp_(min=lowest, max=highest)


def _brain_range(values: Tensor, brain: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of each modality (B, M, 1, ...); 0 where the patch has no brain."""
    axes = tuple(range(2, values.dim()))
    far = (1 - brain) * torch.finfo(values.dtype).max
    some = brain.amax(axes, keepdim=True)
    return (values + far).amin(axes, keepdim=True) * some, (values - far).amax(axes, keepdim=True) * some


def _change_gamma(values: Tensor, *, gamma: Tensor, inverted: Tensor | None, brain: Tensor) -> Tensor:
    """Raise each modality, stretched to 0..1 over the patch's brain voxels, to the power gamma; mean and
    spread are restored.

    As MONAI's AdjustContrast with `retain_stats` (and `invert_image`), over the voxels that are not air:
    gamma bends the histogram, gain and shift move it. Where inverted (B, 1, ...), 1 minus the stretched image
    is raised, and turned back.
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
    generator = torch.Generator().manual_seed(_STREAM)
    return torch.randn(n, generator=generator).to(device)


def _noise(starts: Tensor, shape: torch.Size) -> Tensor:
    """Normal numbers (B, M, *shape): for each start a stretch of the table."""
    n = shape.numel()
    table = _noise_table(starts.device, NOISE_TABLE + n)
    return table.unfold(0, n, 1)[starts.ravel()].reshape(*starts.shape, *shape)
