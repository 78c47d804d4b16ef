"""The networks of the image studies: shapes, parameters, initialization."""

import pytest
import torch
from torch import nn

from brats_seg.core.errors import UsageError
from brats_seg.models.classic import CLASSIC, make_classic, output_layers

PUBLISHED = {
    "lenet5": (1, 10, 28, 431_080),
    "all_cnn": (3, 10, 32, 1_369_738),
    "resnet10": (
        3,
        1000,
        224,
        5_417_070,
    ),  # Simon et al. print no number; this counts the layers of their Caffe model
    "resnet32": (3, 10, 32, 464_154),  # He et al. 2016, table 6: 0.46 million
    "two_class": (3, 2, 32, 15_458),
}


def build(name):
    n_channels, n_classes, side, _ = PUBLISHED[name]
    torch.manual_seed(0)
    return make_classic(name, n_channels=n_channels, n_classes=n_classes, image_size=(side, side))


@pytest.mark.parametrize("name", CLASSIC)
def test_parameters_and_output(name):
    n_channels, n_classes, side, n_parameters = PUBLISHED[name]
    network = build(name)
    assert sum(p.numel() for p in network.parameters()) == n_parameters
    assert network(torch.randn(2, n_channels, side, side)).shape == (2, n_classes)


def shapes_of(network, inputs):
    found = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.Linear):
            module.register_forward_hook(lambda _m, _i, output: found.append(tuple(output.shape[1:])))
    network.eval()(inputs)
    return found


def test_layers_of_lenet_are_those_of_table_2():
    shapes = shapes_of(build("lenet5"), torch.randn(1, 1, 28, 28))
    assert shapes == [(20, 24, 24), (20, 12, 12), (50, 8, 8), (50, 4, 4), (500,), (10,)]
    assert sum(isinstance(m, nn.ReLU) for m in build("lenet5").modules()) == 1


def test_layers_of_all_cnn_are_those_of_table_3():
    shapes = shapes_of(build("all_cnn"), torch.randn(1, 3, 32, 32))
    assert shapes == [
        (96, 32, 32),
        (96, 32, 32),
        (96, 16, 16),
        (192, 16, 16),
        (192, 16, 16),
        (192, 8, 8),
        (192, 6, 6),
        (192, 6, 6),
        (10, 6, 6),
    ]
    assert [m.p for m in build("all_cnn").modules() if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]


def test_layers_of_resnet10():
    shapes = shapes_of(build("resnet10"), torch.randn(1, 3, 224, 224))
    assert shapes[:2] == [(64, 112, 112), (64, 56, 56)]
    assert [s for s in shapes if s[-1] == 7] == [(512, 7, 7)] * 3
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) for m in build("resnet10").modules()) == 9


def test_layers_of_resnet32():
    shapes = shapes_of(build("resnet32"), torch.randn(1, 3, 32, 32))
    assert shapes == [(16, 32, 32)] * 11 + [(32, 16, 16)] * 10 + [(64, 8, 8)] * 10 + [(10,)]


def test_the_second_phase_trains_the_output_layer_and_of_all_cnn_the_last_two():
    assert [m.weight.shape for m in output_layers("lenet5", build("lenet5"))] == [(10, 500)]
    assert [m.weight.shape for m in output_layers("all_cnn", build("all_cnn"))] == [
        (192, 192, 1, 1),
        (10, 192, 1, 1),
    ]
    assert [m.weight.shape for m in output_layers("resnet10", build("resnet10"))] == [(1000, 512)]
    assert [m.weight.shape for m in output_layers("two_class", build("two_class"))] == [(2, 32)]


@pytest.mark.parametrize(
    ("name", "uniform"),
    [("lenet5", True), ("all_cnn", True), ("two_class", True), ("resnet10", False), ("resnet32", False)],
)
def test_initial_weights(name, uniform):
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is None or not module.bias.any()
            fan_in, fan_out = (
                module.weight[0].numel(),
                module.weight.numel() / module.in_channels if hasattr(module, "in_channels") else 0,
            )
            if name.startswith("resnet"):
                is_stem = isinstance(module, nn.Conv2d) and module.kernel_size == (7, 7)
                variance = 2 / (fan_out if is_stem else fan_in)
            else:
                fan_out = fan_out or module.weight.shape[0]
                variance = 2 / (fan_in + fan_out) if name == "two_class" else 1 / fan_in
            assert module.weight.var().item() == pytest.approx(variance, rel=0.25)
            assert (module.weight.abs().max().item() <= (3 * variance) ** 0.5 * 1.001) == uniform


def test_one_seed_one_network():
    assert all(
        torch.equal(a, b)
        for a, b in zip(build("lenet5").parameters(), build("lenet5").parameters(), strict=True)
    )


def test_images_of_another_size():
    assert make_classic("lenet5", n_channels=3, n_classes=4, image_size=(40, 33))(
        torch.randn(2, 3, 40, 33)
    ).shape == (2, 4)
    assert make_classic("all_cnn", n_channels=1, n_classes=4, image_size=(28, 28))(
        torch.randn(2, 1, 28, 28)
    ).shape == (2, 4)


@pytest.mark.parametrize("name", CLASSIC)
def test_the_smallest_image(name):
    side = CLASSIC[name].smallest
    network = make_classic(name, n_channels=1, n_classes=3, image_size=(side, side)).eval()
    assert network(torch.randn(2, 1, side, side)).shape == (2, 3)
    with pytest.raises(
        UsageError,
        match=rf"network '{name}': images of {side - 1} x {side} are too small; it needs {side} pixels a "
        r"side",
    ):
        make_classic(name, n_channels=1, n_classes=3, image_size=(side - 1, side))


def test_an_unknown_name():
    with pytest.raises(
        UsageError,
        match="network 'vgg' is unknown; the names are lenet5, all_cnn, resnet10, resnet32, two_class",
    ):
        make_classic("vgg", n_channels=1, n_classes=3, image_size=(28, 28))
