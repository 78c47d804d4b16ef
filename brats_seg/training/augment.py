"""Random transforms of a batch, and mixing of its examples."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from brats_seg.bank.gather import PatchMaps
from brats_seg.core.augmentation import Augment
from brats_seg.core.sections import Mix
from brats_seg.core.shapes import Counts, Ids
from brats_seg.core.tensors import Inputs, Targets
from brats_seg.imbalance.sampler import Draw
from brats_seg.training.draws import BIAS_DEGREE, Parameters, draw_parameters
from brats_seg.training.intensities import change_intensities, coarse_places, per_channel
from brats_seg.training.step import Second
from brats_seg.training.steps import Examples

_INTENSITIES = ("gain", "shift", "contrast", "gamma", "bias_field", "low_resolution", "sharpness", "noise_sd")
"""Knobs of the intensity transforms."""
_PLANES = ((1, 2), (0, 2), (0, 1))
"""Planes of rotation, as axes of (Z, Y, X). A 2-D patch is rotated only in the first plane."""
_CACHED_BYTES = 2**20
"""Size in bytes of the patches that a CPU transforms together. Of 1, 2, 4 and 12 patches of 4 x 128 x 128
(float32), four were the fastest.
"""


def patch_maps(parameters: Parameters, *, patch_size: tuple[int, ...]) -> PatchMaps | None:
    """How the bank must gather each patch: rotated and scaled about the middle of the patch, and shifted by
    the jitter.

    The drawn voxel lies at its position in the rotated and scaled patch, to the nearest voxel.

    Args:
        parameters: parameters of the batch.
        patch_size: (Y, X) or (Z, Y, X) in voxels.

    Returns:
        None if no patch of the batch is rotated, scaled or shifted.
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

    The transforms work on a copy in which each modality of a patch is contiguous in memory. This is 2 to 30
    times faster than channels last. A 2-D patch with `n_slices` slices in its channels (slice by slice) is
    transformed as a thin volume.
    """
    if n_slices == 1:
        planar = inputs.contiguous()
    else:
        planar = inputs.unflatten(1, (n_slices, -1)).transpose(1, 2).contiguous()
        # The bias field has degree 0 across the slices: it is the same in all slices.
        flat = np.zeros((*parameters.bias.shape[:2], *(BIAS_DEGREE + 1,) * 3))
        flat[:, :, 0] = parameters.bias
        parameters = replace(parameters, bias=flat)
    sent = _sent(_plan(parameters, planar.shape[2:], first_coarse_axis=int(n_slices > 1)), planar.device)
    _flip(planar, targets, sent)
    change_intensities(planar, sent)
    if "dropped" in sent:
        planar.masked_fill_(sent["dropped"].reshape(per_channel(planar)), 0)
    return inputs.copy_(planar if n_slices == 1 else planar.transpose(1, 2).flatten(1, 2)), targets


class Augmenter:
    """Augmentation with its knobs and seed. Without an active knob it does nothing."""

    def __init__(
        self,
        augment: Augment,
        *,
        seed: int,
        patch_size: tuple[int, ...],
        n_slices: int = 1,
        jitter: float = 0.0,
    ) -> None:
        """Store the knobs. The seed determines the random numbers.

        Args:
            augment: knobs of the transforms.
            seed: seed of the run.
            patch_size: (Y, X) or (Z, Y, X) in voxels.
            n_slices: number of slices in the channels of a 2-D patch.
            jitter: share of the patch, around its middle, in which the drawn voxel lies; 0 means the center.
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
        """Parameters of the draws at these positions of the epoch; None without an active knob."""
        if not self.is_on:
            return None
        return draw_parameters(
            self.augment, seed=self.seed, epoch=epoch, positions=positions, n_modalities=n_modalities,
            n_dims=len(self.patch_size), jitter=self.jitter,
        )  # fmt: skip

    def maps(self, parameters: Parameters | None) -> PatchMaps | None:
        """The maps with which the bank gathers the batch; see `patch_maps`."""
        return None if parameters is None else patch_maps(parameters, patch_size=self.patch_size)

    def __call__(
        self, inputs: Inputs, targets: Targets, *, parameters: Parameters | None
    ) -> tuple[Inputs, Targets]:
        """Flip a gathered batch and change its intensities, in place.

        On a CPU a few patches are transformed at a time, so that they stay in the cache. The values are the
        same, and it is 1.4 times faster.
        """
        if parameters is None:
            return inputs, targets
        n = len(inputs)
        at_once = max(1, _CACHED_BYTES // inputs[0].nbytes) if inputs.device.type == "cpu" else n
        for rows in (slice(start, start + at_once) for start in range(0, n, at_once)):
            apply(inputs[rows], targets[rows], parameters=parameters.part(rows), n_slices=self.n_slices)
        return inputs, targets


def _flip(planar: Tensor, targets: Tensor, sent: dict[str, Tensor]) -> None:
    for axis in range(-planar.dim() + 2, 0):
        if (rows := sent.get(f"flip{axis}")) is not None:
            planar.index_copy_(0, rows, planar.index_select(0, rows).flip(axis))
            targets.index_copy_(0, rows, targets.index_select(0, rows).flip(axis))


def _plan(parameters: Parameters, shape: torch.Size, *, first_coarse_axis: int = 0) -> dict[str, np.ndarray]:
    """The arrays that `_flip` and `change_intensities` need, by name. Transforms that no draw has are left
    out.

    `changed` are the rows of the batch that are changed. For each transform, `name.rows` are its rows among
    the changed rows, and the other arrays have one entry for each of these rows.
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
        plan |= coarse_places(p.resolution[transforms["resolution"][0]], shape, first_axis=first_coarse_axis)
    for axis in range(-p.flip.shape[1], 0):
        if p.flip[:, axis].any():
            plan[f"flip{axis}"] = np.flatnonzero(p.flip[:, axis])
    if not p.kept.all():
        plan["dropped"] = ~p.kept
    return plan


def _sent(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """The arrays on the device, sent in one copy without waiting; float64 becomes float32."""
    arrays = {
        name: np.ascontiguousarray(a, np.float32 if a.dtype == np.float64 else a.dtype)
        for name, a in arrays.items()
    }
    # Each array starts at a multiple of 8 bytes, so that it can be read as 8-byte numbers.
    starts = np.cumsum([0, *(-(-array.nbytes // 8) * 8 for array in arrays.values())]).tolist()
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, array in zip(starts, arrays.values(), strict=False):
        packed.numpy()[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    on_device = packed.to(device, non_blocking=True)
    return {
        name: on_device[start : start + array.nbytes].view(torch.from_numpy(array).dtype).reshape(array.shape)
        for start, (name, array) in zip(starts, arrays.items(), strict=False)
    }


class Mixer:
    """Mixes each example of a batch with another example of the batch; see `sections.Mix`."""

    def __init__(self, mix: Mix, *, counts: Counts, seed: int, rank: int) -> None:
        """Store the knobs.

        Args:
            mix: the knobs.
            counts: number of training examples of each class.
            seed: seed of the run; (seed, step, rank) determines the draws of a step.
            rank: each rank mixes its own part of a batch.
        """
        self._mix, self._counts, self._words = mix, counts, (seed, rank)

    def __call__(self, examples: Examples, draw: Draw, *, number: int) -> Second:
        """Mix the inputs in place. Return the second labels.

        Args:
            examples: the examples of the draw; float32 inputs (B, channels, *patch).
            draw: remix uses the classes of its ids.
            number: number of the step in the run.
        """
        seed, rank = self._words
        generator = np.random.default_rng([seed, number, rank])
        share = float(generator.beta(self._mix.alpha, self._mix.alpha))
        partner = generator.permutation(len(draw.classes))
        rows = torch.from_numpy(partner).to(examples.inputs.device)
        examples.inputs.lerp_(examples.inputs[rows], 1 - share)
        shares = self.label_shares(share, draw.classes, draw.classes[partner])
        return Second(examples.targets[rows], torch.from_numpy(shares).to(examples.inputs.device))

    def label_shares(self, share: float, first: Ids, second: Ids) -> Float32[np.ndarray, " b"]:
        """Weight of the first label of each example (Chou et al. 2020, section 3; mixup: the share itself).

        Args:
            share: share of the first example in the inputs.
            first, second: class of each of the two examples.
        """
        shares = np.full(len(first), share, np.float32)
        if self._mix.kind == "remix":
            ratio = self._counts[first] / self._counts[second]
            if share < self._mix.threshold:
                shares[ratio >= self._mix.ratio] = 0
            if 1 - share < self._mix.threshold:
                shares[ratio <= 1 / self._mix.ratio] = 1
        return shares
