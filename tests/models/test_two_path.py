"""Shapes of the paper, and that whole slices show what patches show."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from brats_seg.core.runtime import Runtime
from brats_seg.inference.dense import Feed, class_probabilities, slice_logits
from brats_seg.inference.ready import ready_for_inference
from brats_seg.inference.windowed import needs_windows, window_logits
from brats_seg.models.two_path import InputCascade, TwoPath, _convolve_in_columns

CPU = Runtime(torch.device("cpu"))


def shape_after(network: nn.Module, layer: nn.Module, x: torch.Tensor) -> tuple[int, ...]:
    shapes = []
    with layer.register_forward_hook(lambda *_: shapes.append(tuple(_[2].shape[1:]))), torch.no_grad():
        network(x)
    return shapes[0]


def test_shapes_are_those_of_the_paper() -> None:
    network, x = TwoPath(4, 5, norm=None, dropout=0.0), torch.zeros(1, 4, 33, 33)
    first, pool_4, second, pool_2 = network.local_path
    assert shape_after(network, first, x) == (64, 27, 27)
    assert shape_after(network, pool_4, x) == (64, 24, 24)
    assert shape_after(network, second, x) == (64, 22, 22)
    assert shape_after(network, pool_2, x) == (64, 21, 21)
    assert shape_after(network, network.global_path, x) == (160, 21, 21)
    assert shape_after(network, network.dropout, x) == (224, 21, 21)
    assert shape_after(network, network.classifier, x) == (5, 1, 1)


def test_the_input_cascade_joins_the_first_networks_33_to_the_image() -> None:
    network, x = InputCascade(4, 5, widths=(2, 3), norm=None, dropout=0.0), torch.randn(1, 4, 65, 65)
    assert shape_after(network, network.first, x) == (5, 33, 33)
    shown = []
    with network.second.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0])), torch.no_grad():
        assert network(x).shape == (1, 5, 1, 1)
        first = network.first(x)
    assert torch.equal(shown[0], torch.cat([x[:, :, 16:49, 16:49], first.softmax(1)], 1))


def test_both_networks_of_an_input_cascade_learn() -> None:
    network = InputCascade(4, 5, widths=(2, 3), norm=None, dropout=0.0)
    network(torch.randn(2, 4, 65, 65)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_maxout_is_the_larger_of_two_convolutions() -> None:
    layer, x = TwoPath(4, 5, norm=None, dropout=0.0).global_path, torch.randn(1, 4, 14, 13)
    weight, bias = layer.pieces.conv.weight, layer.pieces.conv.bias
    one, other = F.conv2d(x, weight[:160], bias[:160]), F.conv2d(x, weight[160:], bias[160:])
    torch.testing.assert_close(layer(x), one.maximum(other))


@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_convolving_in_columns_is_convolving(
    batch: int, n_in: int, n_classes: int, side: int, more_y: int, more_x: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(
        batch,
        n_in,
        side + more_y,
        side + more_x,
        generator=generator,
        dtype=torch.float64,
        requires_grad=True,
    )
    kernel = torch.randn(
        n_classes, n_in, side, side, generator=generator, dtype=torch.float64, requires_grad=True
    )
    ours, torchs = _convolve_in_columns(x, kernel), F.conv2d(x, kernel)
    torch.testing.assert_close(ours, torchs)
    of = torch.randn(torchs.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(ours, (x, kernel), of), torch.autograd.grad(torchs, (x, kernel), of), strict=True
    ):
        torch.testing.assert_close(one, other)


def patch_by_patch(network: nn.Module, image: np.ndarray) -> torch.Tensor:
    """Logits (Z, K, Y, X), every voxel the center of a patch of its own; air beyond the image."""
    m = network.margin
    padded = F.pad(torch.from_numpy(image.astype(np.float32)).permute(0, 3, 1, 2), (m, m, m, m))
    rows = []
    for y in range(image.shape[1]):
        patches = padded[:, :, y : y + 2 * m + 1].unfold(3, 2 * m + 1, 1)  # (Z, M, side, X, side)
        out = network(patches.permute(0, 3, 1, 2, 4).flatten(0, 1))
        rows.append(out.unflatten(0, (image.shape[0], image.shape[2])).permute(0, 2, 3, 4, 1)[:, :, 0])
    return torch.cat(rows, 2)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kind", [TwoPath, InputCascade])
def test_whole_slices_equal_patches_at_every_voxel(kind: type[nn.Module], norm: str) -> None:
    torch.manual_seed(0)
    network = kind(2, 3, widths=(6, 8), norm=None if norm == "none" else norm, dropout=0.1)
    network(torch.randn(4, 2, 70, 70))  # gives the batch norms something to say
    nn.init.normal_(getattr(network, "second", network).classifier.weight, std=2.0)
    image = np.random.default_rng(0).standard_normal((2, 5, 9, 2)).astype(np.float16)
    ready = ready_for_inference(network, runtime=CPU)
    assert not needs_windows(ready)
    with torch.no_grad():
        expected = patch_by_patch(network.eval(), image)
    assert expected.std() > 0.05
    whole = torch.cat([logits for _, logits in slice_logits(ready, image, np.arange(2), divisor=1)])
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)
    windows = torch.cat([logits for _, logits in window_logits(ready, image, window=(4, 5))])
    torch.testing.assert_close(windows, expected, atol=1e-5, rtol=0)
    probabilities = class_probabilities(ready, image, feed=Feed(divisor=1))
    torch.testing.assert_close(
        torch.from_numpy(probabilities), expected.softmax(1).transpose(0, 1), atol=1e-5, rtol=0
    )


def test_it_learns_the_class_of_the_center() -> None:
    """Two classes told apart by the mean of the patch's middle: a few Adam steps at a usual rate."""
    torch.manual_seed(0)
    network = TwoPath(1, 2, widths=(4, 4), norm="batch", dropout=0.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(30):
        x = torch.randn(16, 1, 33, 33)
        y = torch.randint(0, 2, (16,))
        x[:, :, 12:21, 12:21] += 2.0 * y[:, None, None, None] - 1
        loss = F.cross_entropy(network(x)[:, :, 0, 0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
