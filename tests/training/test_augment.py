from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import AdjustContrast, Flip
from numpy.polynomial.legendre import leggrid2d, leggrid3d
from scipy.ndimage import gaussian_filter

from brats_seg.core.augmentation import Augment
from brats_seg.core.config import parse_config
from brats_seg.core.errors import UsageError
from brats_seg.training.augment import Augmenter, apply, patch_maps
from brats_seg.training.draws import Parameters, draw_parameters

EVERYTHING = Augment(
    flip=0.5,
    rotate_degrees=30,
    scale=(0.7, 1.4),
    gain=(0.7, 1.3),
    shift=(-0.2, 0.2),
    gamma=(0.7, 1.5),
    noise_sd=(0.0, 0.2),
    sharpness=(-1.0, 1.0),
    contrast=(0.75, 1.25),
    gamma_inverted=0.5,
    bias_field=(0.0, 0.3),
    low_resolution=(0.5, 1.0),
    modality_dropout=0.3,
)
NUMBERS = tuple(field.name for field in fields(Parameters))


def batch(n: int = 6, *, side: int = 16, n_dims: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, *[side] * n_dims, 4, generator=generator).movedim(-1, 1)
    return inputs, torch.randint(0, 5, (n, *[side] * n_dims), generator=generator).to(torch.uint8)


def augmented(
    augment: Augment,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    positions: Iterable[int],
    n_slices: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of a batch after the transforms that follow the gather."""
    size = tuple(inputs.shape[2:])
    augmenter = Augmenter(augment, seed=1, patch_size=size, n_slices=n_slices)
    parameters = augmenter.draw(
        epoch=1, positions=np.array(list(positions)), n_modalities=inputs.shape[1] // n_slices
    )
    return augmenter(inputs.clone(), targets.clone(), parameters=parameters)


def identity(n: int, *, n_dims: int = 2, n_modalities: int = 4) -> Parameters:
    return draw_parameters(
        Augment(flip=0), seed=0, epoch=1, positions=np.arange(n), n_modalities=n_modalities, n_dims=n_dims
    )


def drawn(positions: list[int], *, seed: int = 3, epoch: int = 2) -> Parameters:
    return draw_parameters(
        EVERYTHING, seed=seed, epoch=epoch, positions=np.array(positions), n_modalities=4, n_dims=2
    )


# Randomness


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40, unique=True))
def test_a_draw_has_its_own_parameters_in_any_company(positions: list[int]) -> None:
    together = drawn(positions)
    for row, position in enumerate(positions[:5]):
        alone = drawn([position])
        for name in NUMBERS:
            assert np.array_equal(getattr(together, name)[row], getattr(alone, name)[0])


def test_seed_epoch_and_position_each_change_the_numbers() -> None:
    others = (drawn([7]), drawn([8]), drawn([7], seed=4), drawn([7], epoch=3))
    assert len({p.noise_start.tobytes() for p in others}) == 4


def test_draws_lie_in_their_ranges_and_come_as_often_as_asked() -> None:
    p = drawn(list(range(20000)))
    assert p.flip.mean() == pytest.approx(0.5, abs=0.01)
    assert p.affine.mean() == pytest.approx(0.5, abs=0.015)
    assert np.abs(p.angle_radians).max() == pytest.approx(np.deg2rad(30), rel=0.01)
    assert p.scale.min() == pytest.approx(0.7, rel=0.01)
    assert p.scale.max() == pytest.approx(1.4, rel=0.01)
    assert np.median(p.scale[p.affine]) == pytest.approx((0.7 * 1.4) ** 0.5, rel=0.01)
    assert (p.gamma != 1).any(1).mean() == pytest.approx(0.5, abs=0.015)
    assert (p.noise_sd > 0).any(1).mean() == pytest.approx(0.5, abs=0.015)
    assert p.inverted.mean() == pytest.approx(0.5, abs=0.01)
    for name, low, high in (("resolution", 0.5, 1.0), ("contrast", 0.75, 1.25)):
        values = getattr(p, name)
        assert (values != 1).any(1).mean() == pytest.approx(0.5, abs=0.015)
        assert (values.min(), values.max()) == (pytest.approx(low, rel=0.01), pytest.approx(high, rel=0.01))
    assert p.bias.any((1, 2, 3)).mean() == pytest.approx(0.5, abs=0.015)
    assert (p.bias.min(), p.bias.max()) == (pytest.approx(-0.3, rel=0.02), pytest.approx(0.3, rel=0.02))
    assert np.corrcoef(p.gain[:, 0], p.gain[:, 1])[0, 1] > 0  # one coin for the four modalities ...
    touched = (p.gain != 1).all(1)
    assert abs(np.corrcoef(p.gain[touched, 0], p.gain[touched, 1])[0, 1]) < 0.03  # ... then a value for each


# What a batch becomes


def test_a_batch_does_not_depend_on_its_company() -> None:
    inputs, targets = batch(6)
    together = augmented(EVERYTHING, inputs, targets, positions=range(10, 16))
    odd = augmented(EVERYTHING, inputs[1::2], targets[1::2], positions=range(11, 16, 2))
    assert torch.equal(together[0][1::2], odd[0])
    assert torch.equal(together[1][1::2], odd[1])


@pytest.mark.parametrize("n_slices", [1, 2])
def test_some_patches_at_a_time_get_what_the_whole_batch_gets(n_slices: int) -> None:
    inputs, targets = batch(11, side=128)
    augmenter = Augmenter(EVERYTHING, seed=1, patch_size=(128, 128), n_slices=n_slices)
    parameters = augmenter.draw(epoch=1, positions=np.arange(11), n_modalities=4 // n_slices)
    whole = apply(inputs.clone(), targets.clone(), parameters=parameters, n_slices=n_slices)
    parts = augmenter(inputs.clone(), targets.clone(), parameters=parameters)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_memory_format_changes_nothing() -> None:
    inputs, targets = batch(6)
    last = augmented(EVERYTHING, inputs, targets, positions=range(6))
    first = augmented(EVERYTHING, inputs.contiguous(), targets, positions=range(6))
    assert torch.equal(last[0], first[0])
    assert last[0].is_contiguous(memory_format=torch.channels_last)


def test_no_knob_no_change() -> None:
    inputs, targets = batch()
    assert not Augmenter(Augment(flip=0), seed=0, patch_size=(16, 16)).is_on
    same = apply(inputs.clone(), targets.clone(), parameters=identity(6))
    assert torch.equal(same[0], inputs)
    assert torch.equal(same[1], targets)


def test_flips_equal_monai() -> None:
    inputs, targets = batch(4)
    flips = np.array([[False, False], [True, False], [False, True], [True, True]])
    flipped, labels = apply(inputs.clone(), targets.clone(), parameters=replace(identity(4), flip=flips))
    for i, axes in enumerate(([], [0], [1], [0, 1])):
        assert torch.equal(flipped[i], torch.as_tensor(Flip(axes)(inputs[i])) if axes else inputs[i])
        assert torch.equal(labels[i], targets[i].flip(axes))


def test_a_patch_that_is_left_alone_is_gathered_as_it_lies() -> None:
    assert patch_maps(identity(3), patch_size=(16, 16)) is None
    maps = patch_maps(
        replace(identity(2), affine=np.array([False, True]), scale=np.array([1.0, 2.0])), patch_size=(16, 16)
    )
    assert maps is not None
    assert np.array_equal(maps.matrices[0], np.eye(3))
    assert np.array_equal(maps.offsets, np.zeros((2, 3)))


def test_a_map_turns_in_the_plane_and_magnifies() -> None:
    turned = replace(
        identity(1), affine=np.array([True]), angle_radians=np.array([[np.pi / 2]]), scale=np.array([2.0])
    )
    maps = patch_maps(turned, patch_size=(16, 16))
    assert maps is not None
    # A step along y of the patch is half a step along x of the volume, and the slice stays the same.
    np.testing.assert_allclose(maps.matrices[0], [[1, 0, 0], [0, 0, -0.5], [0, 0.5, 0]], atol=1e-7)


def test_a_map_in_three_axes_is_a_rotation_over_the_magnification() -> None:
    p = draw_parameters(EVERYTHING, seed=3, epoch=1, positions=np.arange(50), n_modalities=4, n_dims=3)
    maps = patch_maps(p, patch_size=(8, 16, 16))
    assert maps is not None
    square = maps.matrices @ maps.matrices.transpose(0, 2, 1) * p.scale[:, None, None] ** 2
    np.testing.assert_allclose(square, np.tile(np.eye(3), (50, 1, 1)), atol=1e-5)
    assert (np.linalg.det(maps.matrices) > 0).all()


@pytest.mark.parametrize("patch_size", [(16, 17), (8, 9, 16)])
@pytest.mark.parametrize("affine", [0.0, 1.0])
def test_jitter_puts_the_drawn_voxel_anywhere_in_its_share_of_the_patch(
    patch_size: tuple[int, ...], affine: float
) -> None:
    augment = Augment(flip=0, rotate_degrees=30, scale=(0.7, 1.4), affine_probability=affine)
    n_dims, n = len(patch_size), 4000
    p = draw_parameters(
        augment, seed=0, epoch=1, positions=np.arange(n), n_modalities=4, n_dims=n_dims, jitter=0.5
    )
    maps = patch_maps(p, patch_size=patch_size)
    assert maps is not None
    sides = np.array((1, 1, *patch_size)[-3:])
    # The gather reads place i of the patch at offset + (middle - center) + matrix (i - middle): solved for
    # the drawn voxel, 0.
    beside = -maps.offsets - ((sides - 1) / 2 - sides // 2)
    places = (sides - 1) / 2 + np.einsum("bij,bj->bi", np.linalg.inv(maps.matrices), beside)
    for axis, side in enumerate(sides):
        middle, reach = (side - 1) / 2, 0.25 * (side - 1)
        slack = 1.3 if affine else 0.5  # offsets are whole voxels
        assert np.abs(places[:, axis] - middle).max() <= reach + slack
        if side > 1:
            assert places[:, axis].std() == pytest.approx(2 * reach / 12**0.5, rel=0.12)


def test_without_jitter_the_drawn_voxel_is_the_center() -> None:
    assert (drawn([1, 2, 3]).place == 0).all()
    with_jitter = draw_parameters(
        EVERYTHING, seed=3, epoch=2, positions=np.arange(5), n_modalities=4, n_dims=2, jitter=1.0
    )
    assert (with_jitter.place != 0).all()
    for name in set(NUMBERS) - {"place"}:
        assert np.array_equal(getattr(with_jitter, name), getattr(drawn(list(range(5))), name))


def test_slices_of_a_patch_are_transformed_as_the_thin_volume_that_they_are() -> None:
    inputs, targets = batch(5, side=16)
    three = torch.cat([inputs, inputs, inputs], 1).contiguous(memory_format=torch.channels_last)
    silent = EVERYTHING.model_copy(update={"noise_sd": (0.0, 0.0)})
    one = augmented(silent, inputs, targets, positions=range(5))
    slab = augmented(silent, three, targets, positions=range(5), n_slices=3)
    for first in (0, 4, 8):  # the same slice three times: every slice is changed alike
        torch.testing.assert_close(slab[0][:, first : first + 4], one[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(slab[1], one[1])
    noisy = augmented(EVERYTHING, three, targets, positions=range(5), n_slices=3)[0]
    assert not torch.equal(noisy[:, :4], noisy[:, 4:8])  # the noise of each slice is its own


def test_gamma_equals_monai_and_keeps_mean_and_spread() -> None:
    inputs, targets = batch(2)
    gamma = np.array([[1.0] * 4, [0.6, 1.0, 1.7, 2.5]])
    bent, _ = apply(inputs.clone(), targets, parameters=replace(identity(2), gamma=gamma))
    for channel in range(4):
        reference = AdjustContrast(gamma[1, channel], retain_stats=True)(inputs[1, channel])
        torch.testing.assert_close(bent[1, channel], torch.as_tensor(reference), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bent.mean((2, 3)), inputs.mean((2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(bent.std((2, 3)), inputs.std((2, 3)), atol=1e-4, rtol=1e-4)


def test_gamma_of_the_inverted_image_equals_monai() -> None:
    inputs, targets = batch(2)
    p = replace(identity(2), gamma=np.full((2, 4), 1.6), inverted=np.array([False, True]))
    bent, _ = apply(inputs.clone(), targets, parameters=p)
    for draw in (0, 1):
        reference = AdjustContrast(1.6, retain_stats=True, invert_image=bool(draw))(inputs[draw, 0])
        torch.testing.assert_close(bent[draw, 0], torch.as_tensor(reference), atol=1e-4, rtol=1e-4)


def test_contrast_spreads_the_values_about_their_mean_and_cuts_them_at_their_range() -> None:
    """Four brain voxels of 0.5, 1, 2 and 4.5, mean 2; the rest is air, of which no mean is taken."""
    inputs = torch.zeros(1, 1, 2, 4)
    inputs[0, 0, 0] = torch.tensor([0.5, 1.0, 2.0, 4.5])
    targets = torch.zeros(1, 2, 4, dtype=torch.uint8)
    for factor, expected in ((0.5, [1.25, 1.5, 2.0, 3.25]), (2.0, [0.5, 0.5, 2.0, 4.5])):
        changed, _ = apply(
            inputs.clone(),
            targets,
            parameters=replace(identity(1, n_modalities=1), contrast=np.array([[factor]])),
        )
        assert changed[0, 0, 0].tolist() == expected
        assert changed[0, 0, 1].tolist() == [0, 0, 0, 0]


def test_low_resolution_reads_every_other_voxel_and_draws_lines_between_them() -> None:
    """Six voxels of 1, 2, 4, 8, 16, 32 at half the resolution: the second, fourth and last stand for the
    pairs.
    """
    inputs = torch.zeros(1, 2, 6, 6) + 2.0 ** torch.arange(6)
    targets = torch.zeros(1, 6, 6, dtype=torch.uint8)
    changed, _ = apply(
        inputs.clone(),
        targets,
        parameters=replace(identity(1, n_modalities=2), resolution=np.array([[0.5, 1.0]])),
    )
    # the three coarse voxels 2, 8, 32 lie between the pairs of voxels: at 0.5, 2.5 and 4.5
    assert changed[0, 0, 3].tolist() == [2.0, 2 + 0.25 * 6, 2 + 0.75 * 6, 8 + 0.25 * 24, 8 + 0.75 * 24, 32.0]
    assert torch.equal(changed[0, 1], inputs[0, 1])


def test_low_resolution_leaves_the_slices_of_a_thin_stack_alone() -> None:
    """Three slices of 1, 2 and 4, in the channels of a 2-D patch of one modality: none is made of its
    neighbors.
    """
    inputs = torch.tensor([1.0, 2.0, 4.0])[None, :, None, None].repeat(1, 1, 6, 6)
    p = replace(identity(1, n_modalities=1), resolution=np.array([[0.5]]))
    changed, _ = apply(inputs.clone(), torch.zeros(1, 6, 6, dtype=torch.uint8), parameters=p, n_slices=3)
    assert torch.equal(changed, inputs)


def test_low_resolution_in_3d_is_that_of_every_axis() -> None:
    ramps = torch.stack(torch.meshgrid(*[2.0 ** torch.arange(6)] * 3, indexing="ij"))[None]
    p = replace(identity(1, n_dims=3, n_modalities=3), resolution=np.full((1, 3), 0.5))
    changed, _ = apply(ramps.clone(), torch.zeros(1, 6, 6, 6, dtype=torch.uint8), parameters=p)
    for axis in range(3):
        assert changed[0, axis].movedim(axis, -1)[1, 2].tolist() == [2.0, 3.5, 6.5, 14.0, 26.0, 32.0]


@pytest.mark.parametrize(("shape", "legendre"), [((8, 10), leggrid2d), ((5, 6, 7), leggrid3d)])
def test_a_bias_field_is_that_of_legendre_polynomials(shape: tuple[int, ...], legendre) -> None:
    coefficients = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 3, *[4] * len(shape)))
    inputs = torch.ones(2, 3, *shape)
    p = replace(identity(2, n_dims=len(shape), n_modalities=3), bias=coefficients)
    changed, _ = apply(inputs, torch.zeros(2, *shape, dtype=torch.uint8), parameters=p)
    expected = np.exp(legendre(*[np.linspace(-1, 1, n) for n in shape], coefficients[1, 2]))
    np.testing.assert_allclose(changed[1, 2].numpy(), expected, rtol=1e-5)


def test_a_bias_field_has_no_constant_and_no_degree_above_three() -> None:
    bias = drawn(list(range(50))).bias
    degrees = np.indices((4, 4)).sum(axis=0)
    assert np.array_equal(bias.any((0, 1)), (degrees >= 1) & (degrees <= 3))


def test_new_transforms_leave_the_numbers_of_the_others_alone() -> None:
    without = EVERYTHING.model_copy(
        update={
            "contrast": (1.0, 1.0),
            "gamma_inverted": 0.0,
            "bias_field": (0.0, 0.0),
            "low_resolution": (1.0, 1.0),
        }
    )
    p = draw_parameters(without, seed=3, epoch=2, positions=np.arange(40), n_modalities=4, n_dims=2)
    for name in set(NUMBERS) - {"resolution", "bias", "contrast", "inverted"}:
        assert np.array_equal(getattr(p, name), getattr(drawn(list(range(40))), name))
    assert ((p.resolution == 1).all(), (p.contrast == 1).all(), p.bias.any(), p.inverted.any()) == (
        True,
        True,
        False,
        False,
    )


@pytest.mark.parametrize("knob", ["contrast", "gamma", "bias_field", "low_resolution", "noise_sd"])
def test_one_knob_of_intensity_turns_the_augmenter_on(knob: str) -> None:
    assert Augmenter(
        parse_config({"augment": {"flip": 0, knob: (0.5, 0.9)}}).augment, seed=0, patch_size=(16, 16)
    ).is_on


def test_3d_patches_are_mirrored_along_each_axis_by_itself() -> None:
    inputs, targets = batch(8, side=4, n_dims=3)
    flips = np.array([[bool(i & 4), bool(i & 2), bool(i & 1)] for i in range(8)])
    flipped, labels = apply(
        inputs.clone(), targets.clone(), parameters=replace(identity(8, n_dims=3), flip=flips)
    )
    for i in range(8):
        axes = np.flatnonzero(flips[i]).tolist()
        assert torch.equal(flipped[i], inputs[i].flip([axis + 1 for axis in axes]))
        assert torch.equal(labels[i], targets[i].flip(axes))
    p = draw_parameters(Augment(), seed=0, epoch=1, positions=np.arange(4000), n_modalities=4, n_dims=3)
    assert np.unique(p.flip, axis=0).shape == (8, 3)


def test_blurring_equals_scipy_and_sharpening_is_its_mirror_image() -> None:
    inputs, targets = batch(1)
    p = replace(identity(1), sharpness=np.array([[-1.0, 0.0, 1.0, -0.5]]))
    changed, _ = apply(inputs.clone(), targets, parameters=p)
    ones = gaussian_filter(np.ones((16, 16)), 1.0, truncate=2.0, mode="constant")
    blurred = torch.from_numpy(
        np.stack(
            [
                gaussian_filter(c, 1.0, truncate=2.0, mode="constant") / ones
                for c in inputs[0].double().numpy()
            ]
        )
    )
    detail = inputs[0] - blurred.float()
    torch.testing.assert_close(changed[0, 0], blurred[0].float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(changed[0, 1], inputs[0, 1])
    torch.testing.assert_close(changed[0, 2], inputs[0, 2] + detail[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(changed[0, 3], inputs[0, 3] - detail[3] / 2, atol=1e-5, rtol=1e-5)


def test_gain_and_shift_are_what_they_say() -> None:
    inputs, targets = batch(1)
    gain, shift = np.array([[2.0, 1.0, 0.5, 1.0]]), np.array([[0.0, 1.0, -1.0, 0.0]])
    changed, _ = apply(inputs.clone(), targets, parameters=replace(identity(1), gain=gain, shift=shift))
    expected = (
        inputs * torch.tensor(gain[0])[:, None, None].float() + torch.tensor(shift[0])[:, None, None].float()
    )
    torch.testing.assert_close(changed, expected)


def test_noise_has_the_spread_asked_for_and_differs_between_modalities() -> None:
    inputs, targets = batch(1, side=64)
    p = replace(identity(1), noise_sd=np.array([[0.1, 0.2, 0.4, 0.0]]))
    noise = (apply(inputs.clone(), targets, parameters=p)[0] - inputs)[0]
    assert noise.std((1, 2)).tolist() == pytest.approx([0.1, 0.2, 0.4, 0.0], rel=0.05, abs=1e-6)
    assert abs(float(torch.corrcoef(noise[:2].flatten(1))[0, 1])) < 0.05


def test_air_stays_air() -> None:
    inputs, targets = batch(6)
    inputs[:, :, :5] = 0
    colors = EVERYTHING.model_copy(
        update={"flip": 0, "affine_probability": 0.0, "intensity_probability": 1.0, "modality_dropout": 0.0}
    )
    changed, _ = augmented(colors, inputs, targets, positions=range(6))
    assert (changed[:, :, :5] == 0).all()
    assert (changed[:, :, 5:] != inputs[:, :, 5:]).any()
    # Noise is drawn for the patch as it is; a bias field and coarser voxels are laid over the patch as it is.
    of_values = {"noise_sd": (0.0, 0.0), "bias_field": (0.0, 0.0), "low_resolution": (1.0, 1.0)}
    no_noise = colors.model_copy(update=of_values)
    with_air, _ = augmented(no_noise, inputs, targets, positions=range(6))
    alone, _ = augmented(no_noise, inputs[:, :, 5:], targets[:, 5:], positions=range(6))
    torch.testing.assert_close(
        with_air[:, :, 5:], alone, atol=1e-5, rtol=1e-5
    )  # air has no part in the statistics


def test_modalities_are_dropped_as_often_as_asked_and_one_is_always_kept() -> None:
    kept = drawn(list(range(20000))).kept
    assert kept.any(axis=1).all()
    # 0.3 of a modality's draws, but for those where all four were dropped and it was the one kept
    assert kept.mean(axis=0) == pytest.approx([0.7 + 0.3**4 / 4] * 4, abs=0.01)
    most = draw_parameters(
        Augment(modality_dropout=0.999), seed=0, epoch=1, positions=np.arange(4000), n_modalities=4, n_dims=2
    ).kept
    assert most.any(axis=1).all()
    assert most.mean(axis=0) == pytest.approx([0.25] * 4, abs=0.03)


def test_a_dropped_modality_is_0_all_over_and_the_others_are_what_they_were() -> None:
    inputs, targets = batch(8)
    with_dropout, labels = augmented(EVERYTHING, inputs, targets, positions=range(8))
    without = EVERYTHING.model_copy(update={"modality_dropout": 0.0})
    whole, same_labels = augmented(without, inputs, targets, positions=range(8))
    kept = torch.from_numpy(
        draw_parameters(EVERYTHING, seed=1, epoch=1, positions=np.arange(8), n_modalities=4, n_dims=2).kept
    )
    assert 0 < int(kept.sum()) < 32
    assert torch.equal(with_dropout, whole * kept[:, :, None, None])
    assert torch.equal(labels, same_labels)
    assert Augmenter(Augment(flip=0, modality_dropout=0.1), seed=0, patch_size=(16, 16)).is_on


def test_a_patch_without_contrast_stays_finite() -> None:
    inputs, targets = batch(2)
    inputs[0], inputs[1] = 0.0, 1.5
    bent, _ = apply(inputs.clone(), targets, parameters=replace(identity(2), gamma=np.full((2, 4), 2.0)))
    torch.testing.assert_close(bent, inputs)


@pytest.mark.parametrize(
    "knob",
    [
        {"gamma": (0.0, 1.0)},
        {"gain": (1.2, 0.8)},
        {"scale": (-1.0, 1.0)},
        {"noise_sd": (-0.1, 0.1)},
        {"low_resolution": (0.5, 1.5)},
    ],
)
def test_ranges_that_make_no_sense_are_refused(knob: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(UsageError, match=f"augment.{next(iter(knob))}"):
        parse_config({"augment": knob})
