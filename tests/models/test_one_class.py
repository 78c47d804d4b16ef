"""The autoencoder and deep SVDD."""

import pytest
import torch
from torch import nn

from brats_seg.core.errors import UsageError
from brats_seg.models.one_class import Autoencoder, DeepSvdd


def test_the_loss_of_the_autoencoder_is_its_mean_squared_error():
    torch.manual_seed(0)
    network, images = Autoencoder(3, (28, 20), width=4, code=5).eval(), torch.rand(2, 3, 28, 20)
    residual = network.residual(images)
    assert residual.shape == images.shape
    assert network.encoder(images).shape == (2, 5)
    assert torch.allclose(network(images)[:, 0], (residual**2).mean(dim=(1, 2, 3)))


def test_no_layer_has_a_bias():
    # With one, deep SVDD could give every image the center (Ruff et al. 2018, proposition 2).
    assert all(getattr(m, "bias", None) is None for m in Autoencoder(1, (28, 28)).modules())


def test_a_side_that_is_no_multiple_of_4():
    with pytest.raises(UsageError, match="images of 30 x 28: the autoencoder halves a side twice"):
        Autoencoder(1, (30, 28))


def test_deep_svdd_is_the_squared_distance_to_a_center_that_is_nowhere_near_0():
    network = DeepSvdd(nn.Flatten(), torch.tensor([3.0, 0.02, -0.02, 0.0]))
    assert network.center.tolist() == pytest.approx([3.0, 0.1, -0.1, 0.1])
    assert network(torch.tensor([[[[3.0, 0.1, -0.1, 2.1]]]])).tolist() == [[pytest.approx(4.0)]]
