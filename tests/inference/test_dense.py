import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import nn

from brats_seg.core.errors import InputError
from brats_seg.core.runtime import Runtime
from brats_seg.inference.dense import (
    Feed,
    _largest_on_cpu,
    _largest_on_device,
    brain_mask,
    class_probabilities,
    label_map,
    label_maps,
    most_likely,
    slice_logits,
)  # fmt: skip
from brats_seg.inference.ready import ready_for_inference
from brats_seg.inference.segmenter import Segmenter, segment_crop
from brats_seg.models.builders import crop_sides

CPU = Runtime(torch.device("cpu"))


def random_image(shape: tuple[int, int, int], *, n_channels: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, n_channels)).astype(np.float16)


class Inner(nn.Module):
    """Gives its input without a margin: the least of all valid convolutions."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return crop_sides(x, self.margin)


def small_unet(*, n_dims: int = 2, n_channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    network = UNet(
        n_dims, n_channels, 3, channels=(4, 8, 8), strides=(2, 2), num_res_units=1, norm="BATCH"
    ).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
    return network


@given(
    st.tuples(*[st.integers(1, 21)] * 3),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from([1, 2, 8, 16]),
    st.integers(0, 4),
)
def test_identity_comes_back_whole(shape, n_channels, batch_size, divisor, margin):
    image = random_image(shape, n_channels=n_channels)
    network = Inner(margin)
    stitched = np.zeros((shape[0], n_channels, *shape[1:]), np.float32)
    for zs, logits in slice_logits(
        network, image, np.arange(shape[0]), batch_size=batch_size, divisor=divisor
    ):
        stitched[zs] = logits.numpy()
    assert np.array_equal(stitched, image.transpose(0, 3, 1, 2).astype(np.float32))
    assert np.array_equal(label_map(network, image, feed=Feed(divisor=divisor)), image.argmax(axis=-1))
    assert np.array_equal(
        label_map(network, image, feed=Feed(n_dims=3, divisor=divisor)), image.argmax(axis=-1)
    )


@pytest.mark.parametrize(("n_dims", "window"), [(2, None), (2, (16, 16)), (3, None)])
def test_label_maps_of_several_shifts_are_those_of_each_from_one_pass(n_dims, window):
    network, image, n_passes = small_unet(n_dims=n_dims), random_image((9, 20, 17), seed=2), []
    network.register_forward_hook(lambda *_: n_passes.append(1))
    shifts = [None, (0.0, 0.5, -0.5), (0.1, -0.2, 0.4)]
    one_by_one = [
        label_map(network, image, class_shift=shift, feed=Feed(n_dims=n_dims, window=window))
        for shift in shifts
    ]
    n_of_one = len(n_passes) // 3
    together = label_maps(network, image, class_shifts=shifts, feed=Feed(n_dims=n_dims, window=window))
    assert len(n_passes) == 4 * n_of_one
    assert all(np.array_equal(one, other) for one, other in zip(one_by_one, together, strict=True))
    assert not np.array_equal(together[0], together[1])


def test_a_margin_is_filled_with_air():
    seen = []
    spy = Inner(3)
    spy.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    list(slice_logits(spy, np.ones((1, 5, 6, 2), np.float16), np.arange(1), batch_size=1, divisor=4))
    (x,) = seen
    assert x.shape == (1, 2, 8 + 6, 8 + 6)
    assert x.sum() == x[:, :, 3:8, 3:9].sum() == 5 * 6 * 2


def test_every_pass_has_one_shape():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            assert x.is_contiguous(memory_format=torch.channels_last)
            seen.append(tuple(x.shape))
            return x

    parts = [
        list(zs)
        for zs, _ in slice_logits(Spy(), random_image((11, 17, 30)), np.array([9, 1, 5, 0, 2]), batch_size=2)
    ]
    assert parts == [[9, 1], [5, 0], [2]]
    assert set(seen) == {(2, 4, 32, 32)}


def test_whole_slices_equal_the_network_on_the_padded_slice():
    network, image = small_unet(), random_image((3, 20, 18))
    padded = torch.zeros(3, 4, 32, 32)
    padded[:, :, :20, :18] = torch.from_numpy(image.astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network(padded)[:, :, :20, :18]
    for zs, logits in slice_logits(
        ready_for_inference(network, runtime=CPU), image, np.arange(3), batch_size=2
    ):
        assert torch.allclose(logits, expected[zs], atol=1e-5)


def test_mode_and_weights_are_left_as_they_were():
    network = small_unet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    label_map(network, random_image((2, 16, 16)))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    ready = ready_for_inference(network, runtime=Runtime(torch.device("cpu"), torch.bfloat16))
    assert (next(ready.parameters()).dtype, next(network.parameters()).dtype) == (
        torch.bfloat16,
        torch.float32,
    )
    assert not ready.training


def test_outside_the_brain_is_healthy():
    image = random_image((2, 8, 8), n_channels=2)
    image[0, :4] = 0
    image[0, 4, :, 0] = 0  # one modality is enough to be brain
    assert np.array_equal(brain_mask(image), image.any(axis=-1))
    always_one = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        always_one.weight.zero_()
        always_one.bias.copy_(torch.tensor([0.0, 1.0]))
    labels = label_map(always_one, image)
    assert np.array_equal(labels == 1, brain_mask(image))
    probabilities = class_probabilities(always_one, image)
    assert np.array_equal(most_likely(probabilities, brain_mask(image)), labels)
    assert label_map(always_one, image, class_shift=[2.0, 0.0]).max() == 0


def test_probabilities_average_over_mirrors():
    image = random_image((3, 9, 7))
    network = small_unet(n_channels=4)
    one = class_probabilities(network, image)
    assert one.shape == (3, 3, 9, 7)
    assert np.allclose(one.sum(axis=0), 1, atol=1e-6)
    mirrored = class_probabilities(network, image, mirroring="in_plane")
    by_hand = np.mean(
        [
            np.flip(class_probabilities(network, np.flip(image, a)), tuple(i + 1 for i in a))
            for a in ((), (1,), (2,), (1, 2))
        ],
        axis=0,
    )
    assert np.allclose(mirrored, by_hand, atol=1e-6)
    pointwise = class_probabilities(nn.Identity(), image)
    assert np.allclose(class_probabilities(nn.Identity(), image, mirroring="in_plane"), pointwise, atol=1e-6)


def test_a_volume_is_mirrored_along_all_three_axes_and_slices_in_plane_alone():
    image, network = random_image((4, 8, 8)), small_unet(n_dims=3)
    by_hand = np.mean(
        [
            np.flip(
                class_probabilities(network, np.flip(image, axes), feed=Feed(n_dims=3)),
                tuple(axis + 1 for axis in axes),
            )
            for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
        ],
        axis=0,
    )
    assert np.allclose(
        class_probabilities(network, image, mirroring="all_axes", feed=Feed(n_dims=3)), by_hand, atol=1e-6
    )
    flat = Segmenter(small_unet(), ("t1n", "t1c", "t2w", "t2f"), ("a", "b", "c"))
    found = [
        segment_crop([flat], image, mirroring=way, with_probabilities=True)[1]
        for way in ("all_axes", "in_plane")
    ]
    assert np.array_equal(*found)


def test_slices_around_are_further_channels_from_below_to_above():
    image, network = random_image((5, 6, 7), n_channels=2), nn.Identity()
    air = np.zeros((6, 7, 2), np.float16)
    expected = [
        np.concatenate([image[z - 1] if z else air, image[z], image[z + 1] if z < 4 else air], axis=-1)
        for z in range(5)
    ]
    for zs, logits in slice_logits(network, image, np.arange(5), batch_size=2, slices_around=1):
        assert np.array_equal(logits.permute(0, 2, 3, 1).numpy(), np.stack(expected)[zs].astype(np.float32))
    in_windows = class_probabilities(network, image, feed=Feed(slices_around=1, window=(4, 4)))
    np.testing.assert_allclose(
        in_windows, class_probabilities(network, image, feed=Feed(slices_around=1)), atol=1e-5
    )


@pytest.mark.parametrize("slices_around", [0, 1, 2])
def test_groups_of_slices_are_the_crop_to_the_bit(slices_around):
    image = random_image((19, 12, 10))
    network = small_unet(n_channels=4 * (2 * slices_around + 1))
    segmenter = Segmenter(network, ("t1n", "t1c", "t2w", "t2f"), ("a", "b", "c"), slices_around=slices_around)
    for wish in ({}, {"mirroring": "in_plane", "with_probabilities": True}):
        labels, probabilities = segment_crop([segmenter], image, **wish)
        parts = [segment_crop([segmenter], image, slices=slice(z, z + 8), **wish) for z in (0, 8, 16)]
        assert np.array_equal(np.concatenate([part for part, _ in parts]), labels)
        if probabilities is not None:
            assert np.array_equal(np.concatenate([part for _, part in parts], axis=1), probabilities)


def test_an_instance_norm_of_a_volume_keeps_the_channels_last_and_its_numbers():
    network = nn.InstanceNorm3d(3, affine=True)
    nn.init.normal_(network.weight)
    inputs = torch.randn(1, 3, 8, 9, 10).contiguous(memory_format=torch.channels_last_3d)
    ready = ready_for_inference(network, runtime=CPU)
    with torch.inference_mode():
        found = ready(inputs)
        torch.testing.assert_close(found, network(inputs), atol=1e-5, rtol=1e-5)
        assert found.is_contiguous(memory_format=torch.channels_last_3d)
        two = torch.cat([inputs, 2 * inputs])
        torch.testing.assert_close(ready(two), network(two), atol=1e-5, rtol=1e-5)


def test_an_instance_norm_in_bfloat16_is_as_exact_as_its_input():
    """Means of 2 million numbers: added up in bfloat16 they would stop at 256."""
    inputs = (torch.randn(1, 2, 128, 128, 128, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    ready = ready_for_inference(
        nn.InstanceNorm3d(2, affine=True), runtime=Runtime(torch.device("cpu"), torch.bfloat16)
    )
    exact = inputs.double()
    exact = (exact - exact.mean((2, 3, 4), keepdim=True)) / exact.std((2, 3, 4), keepdim=True)
    with torch.inference_mode():
        off = (ready(inputs.contiguous(memory_format=torch.channels_last_3d)).double() - exact).abs()
    assert off.max() < 2**-8 * exact.abs().max() + 0.01


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 99))
def test_the_largest_class_on_a_device_is_that_on_the_cpu(n, n_y, n_x, n_classes, seed):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.integers(-2, 3, (n, n_classes, n_y, n_x)).astype(np.float32))  # many ties
    brain, shifts = rng.random((n, n_y, n_x)) < 0.7, rng.integers(-1, 2, (2, n_classes)).astype(np.float32)
    for values in (logits, logits.bfloat16(), torch.where(logits == 2, torch.nan, logits)):
        (ours, is_sound), (theirs, was_sound) = (
            find(values, brain, shifts) for find in (_largest_on_device, _largest_on_cpu)
        )
        assert is_sound == was_sound
        assert is_sound == (not values.isnan().any())
        assert not is_sound or all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_three_dimensional_network_sees_the_volume_at_once():
    network, image = small_unet(n_dims=3), random_image((9, 10, 11))
    labels = label_map(ready_for_inference(network, runtime=CPU), image, feed=Feed(n_dims=3, divisor=4))
    padded = torch.zeros(1, 4, 12, 12, 12)
    padded[0, :, :9, :10, :11] = torch.from_numpy(image.astype(np.float32)).permute(3, 0, 1, 2)
    with torch.no_grad():
        expected = network(padded)[0, :, :9, :10, :11].argmax(0)
    assert (labels == expected.numpy()).mean() > 0.999


def test_nan_is_named():
    image = random_image((1, 4, 4))
    image[0, 0, 0, 2] = np.nan
    for function in (label_map, class_probabilities):
        with pytest.raises(InputError, match="not a number"):
            function(nn.Identity(), image)
