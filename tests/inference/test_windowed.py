import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets import UNETR, SwinUNETR, UNet
from torch import nn

from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Network
from brats_seg.inference.dense import Feed, class_probabilities, label_map
from brats_seg.inference.ready import ready_for_inference
from brats_seg.inference.windowed import choose_window, needs_windows, whole_volume_bytes, window_logits
from brats_seg.models.builders import crop_sides
from brats_seg.models.networks import make_network

SIDES = st.integers(1, 21)


def random_image(shape: tuple[int, int, int], *, n_channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((*shape, n_channels)).astype(np.float16)


def stitched(
    network: nn.Module, image: np.ndarray, *, window: tuple[int, ...], overlap: float = 0.5
) -> np.ndarray:
    """Logits (Z, K, Y, X)."""
    parts = list(window_logits(network, image, window=window, overlap=overlap))
    assert np.array_equal(np.concatenate([zs for zs, _ in parts]), np.arange(image.shape[0]))
    return np.concatenate([logits.numpy() for _, logits in parts])


@given(
    st.tuples(SIDES, SIDES, SIDES),
    st.lists(st.integers(2, 12), min_size=2, max_size=3),
    st.floats(0, 0.9),
    st.integers(0, 3),
)
def test_identity_comes_back_whole_for_any_shape_window_overlap_and_margin(shape, window, overlap, margin):
    class Inner(nn.Module):
        def forward(self, x):
            assert tuple(x.shape[2:]) == tuple(side + 2 * margin for side in window)
            return crop_sides(x, margin)

    image, network = random_image(shape), Inner()
    network.margin = margin
    out = stitched(network, image, window=tuple(window), overlap=overlap)
    np.testing.assert_allclose(out, image.transpose(0, 3, 1, 2).astype(np.float32), rtol=1e-5, atol=1e-6)


def test_one_window_is_the_networks_own_output():
    torch.manual_seed(0)
    network = UNet(2, 3, 4, channels=(4, 8), strides=(2,), norm="INSTANCE").eval()
    image = random_image((3, 16, 12))
    with torch.no_grad():
        expected = network(torch.from_numpy(image.astype(np.float32)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(stitched(network, image, window=(16, 12)), expected.numpy(), atol=1e-5)


def test_every_window_has_the_size_asked_for_and_the_networks_precision():
    seen = set()

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, x):
            seen.add((tuple(x.shape[2:]), x.dtype))
            return x * self.weight

    out = stitched(Spy().eval(), random_image((2, 30, 9)), window=(8, 16))
    assert seen == {((8, 16), torch.bfloat16)}
    assert out.dtype == np.float32


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_the_choice_follows_the_norm(norm):
    network = make_network(Network(channels=(8, 8), norm=norm), n_channels=4, n_classes=4, n_dims=2)
    ready = ready_for_inference(network, runtime=Runtime(torch.device("cpu")))
    assert needs_windows(ready) == (norm != "batch")
    assert choose_window(ready, patch_size=(64, 64)) == (None if norm == "batch" else (64, 64))


def test_the_choice_can_be_overridden():
    assert choose_window(nn.Identity(), patch_size=(8, 8), inference="windowed") == (8, 8)
    assert choose_window(nn.InstanceNorm2d(3), patch_size=(8, 8), inference="whole") is None


@pytest.mark.parametrize(
    "network",
    [
        nn.MultiheadAttention(8, 2),
        UNETR(
            4,
            4,
            (32, 32),
            feature_size=4,
            hidden_size=16,
            mlp_dim=16,
            num_heads=2,
            norm_name="batch",
            spatial_dims=2,
        ),
        SwinUNETR(
            4,
            4,
            feature_size=12,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 1, 1),
            norm_name="batch",
            spatial_dims=2,
        ),
    ],
)
def test_transformers_need_windows(network):
    assert needs_windows(network)


# Whole volumes


def volume_network(norm: str) -> nn.Module:
    network = make_network(
        Network(name="dynunet", channels=(4, 8, 8), norm=norm), n_channels=4, n_classes=4, n_dims=3
    )
    return ready_for_inference(network, runtime=Runtime(torch.device("cpu")))


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_volume_is_seen_whole_where_the_training_patch_covers_half_of_it(norm):
    network = volume_network(norm)

    def chosen(*sides: int) -> tuple[int, ...] | None:
        return choose_window(network, patch_size=(16, 16, 16), image_shape=(*sides, 4), divisor=4)

    assert chosen(16, 16, 32) is None
    assert chosen(8, 8, 32) is None  # what is narrower than the patch is covered
    assert chosen(16, 16, 33) == (16, 16, 16)
    assert choose_window(network, patch_size=(16, 16, 16)) == (16, 16, 16)
    assert (
        choose_window(network, patch_size=(16, 16, 16), image_shape=(16, 16, 33, 4), inference="whole")
        is None
    )
    assert choose_window(
        network, patch_size=(16, 16, 16), image_shape=(16, 16, 16, 4), inference="windowed"
    ) == (16, 16, 16)


def test_a_volume_that_does_not_fit_into_memory_is_seen_in_windows(monkeypatch):
    network, shape = volume_network("batch"), (15, 16, 33, 4)
    needed = whole_volume_bytes(network, shape, divisor=4)
    assert (
        needed == 16 * 16 * 36 * 4 * 12 * 4
    )  # voxels, bytes of a number, layers alive, channels at full resolution
    for memory, window in ((2 * needed, None), (2 * needed - 1, (16, 16, 16))):
        monkeypatch.setattr(
            "brats_seg.inference.windowed._memory_bytes", lambda device, memory=memory: memory
        )
        assert choose_window(network, patch_size=(16, 16, 16), image_shape=shape, divisor=4) == window


def test_attention_sees_windows_however_small_the_volume():
    network = nn.Sequential(nn.Conv3d(4, 4, 1), nn.MultiheadAttention(8, 2))
    assert choose_window(network, patch_size=(16, 16, 16), image_shape=(16, 16, 16, 4)) == (16, 16, 16)


@pytest.mark.parametrize("window", [(4, 4), (4, 4, 4)])
def test_label_map_and_probabilities_take_windows(window):
    image = random_image((9, 11, 7))
    labels = label_map(nn.Identity(), image, feed=Feed(window=window))
    assert np.array_equal(labels, image.argmax(axis=-1))
    whole = class_probabilities(nn.Identity(), image, mirroring="in_plane")
    in_windows = class_probabilities(nn.Identity(), image, mirroring="in_plane", feed=Feed(window=window))
    np.testing.assert_allclose(in_windows, whole, atol=1e-5)
