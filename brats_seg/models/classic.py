"""The networks of the image studies, by name: LeNet-5, All-CNN, ResNet-10, ResNet-32 and the two-class
network.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import torch.nn.functional as F
from torch import Tensor, nn

from brats_seg.core.errors import UsageError

Builder = Callable[[int, int, tuple[int, int]], nn.Module]
"""(n_channels, n_classes, (y, x) of an image) -> module from (B, n_channels, Y, X) to logits (B, n_classes).
"""


@dataclass(frozen=True)
class Classic:
    """A published network.

    Attributes:
        build: function that builds the network, initialized from torch's global generator.
        output: dotted paths of the layers that the second phase of two-phase training trains.
        smallest: smallest side of an image, in pixels.
    """

    build: Builder
    output: tuple[str, ...]
    smallest: int


def make_classic(name: str, *, n_channels: int, n_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Build a network by its name.

    Args:
        name: a key of `CLASSIC`.
        n_channels: number of channels of an image.
        n_classes: number of classes K.
        image_size: (Y, X) in pixels. A LeNet-5 accepts only images of this size.

    Returns:
        A module from float inputs (B, n_channels, Y, X) to logits (B, K). Its weights have the memory format
        channels last.

    Raises:
        UsageError: the name is unknown, or the images are too small for the network.
    """
    if name not in CLASSIC:
        raise UsageError(f"network '{name}' is unknown; the names are {', '.join(CLASSIC)}")
    if min(image_size) < CLASSIC[name].smallest:
        shown = " x ".join(map(str, image_size))
        raise UsageError(
            f"network '{name}': images of {shown} are too small; it needs {CLASSIC[name].smallest} pixels a "
            "side"
        )
    return CLASSIC[name].build(n_channels, n_classes, image_size)


def output_layers(name: str, network: nn.Module) -> tuple[nn.Module, ...]:
    """The layers of a network that the second phase trains. All other layers are frozen."""
    return tuple(network.get_submodule(path) for path in CLASSIC[name].output)


class ResNet10(nn.Module):
    """ResNet-10 (Simon et al. 2016) with pre-activation blocks (He et al. 2016b). A batch norm on the input
    replaces the normalization by mean and deviation.

    As in the Caffe model, the stem has a bias, pooling rounds up, the shortcut of a widening block starts
    after its first ReLU, and the first block uses the pooled stem without a norm.
    """

    def __init__(self, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n_channels)
        self.stem = nn.Sequential(
            nn.Conv2d(n_channels, 64, 7, stride=2, padding=3),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
        )
        self.blocks = nn.Sequential(_Block(64, 64), _Block(64, 128), _Block(128, 256), _Block(256, 512))
        self.last = nn.Sequential(nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.output = nn.Linear(512, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # Only the stem is initialized by its fan out, as in the Caffe model.
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out" if module is self.stem[0] else "fan_in", nonlinearity="relu"
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, K)."""
        logits: Tensor = self.output(self.last(self.blocks(self.stem(self.norm(inputs)))))
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; widening halves the resolution."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        # The first block directly follows the ReLU and pooling of the stem, so it has no norm before its
        # first convolution.
        self.before = nn.Identity() if n_in == n_out else nn.Sequential(nn.BatchNorm2d(n_in), nn.ReLU())
        self.first = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.between = nn.Sequential(nn.BatchNorm2d(n_out), nn.ReLU())
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, n_in, Y, X) -> (B, n_out, Y / stride, X / stride)."""
        active = self.before(features)
        sum_: Tensor = self.second(self.between(self.first(active))) + self.shortcut(active)
        return sum_


class ResNet32(nn.Module):
    """The 32-layer network for CIFAR (He et al. 2016a, section 4.2): 16, 32 and 64 features, five blocks
    each, and shortcuts without weights.
    """

    def __init__(self, n_channels: int, n_classes: int) -> None:
        super().__init__()
        widths = (16, *[16] * 5, *[32] * 5, *[64] * 5)
        self.stem = nn.Sequential(
            nn.Conv2d(n_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(_PlainBlock(*pair) for pair in pairwise(widths)))
        self.mean = _mean()
        self.output = nn.Linear(64, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                _zero_bias(module)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, K)."""
        logits: Tensor = self.output(self.mean(self.blocks(self.stem(inputs))))
        return logits


class _PlainBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; widening halves the resolution, and the new features of the
    shortcut are 0 (option A).
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.stride, self.n_new = (1 if n_in == n_out else 2), n_out - n_in
        self.inner = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride=self.stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, n_in, Y, X) -> (B, n_out, Y / stride, X / stride)."""
        shortcut = features[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.n_new // 2, self.n_new - self.n_new // 2))
        return F.relu(self.inner(features) + shortcut)


def _mean() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _lenet5(n_channels: int, n_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Caffe's LeNet (Buda et al. 2018, table 2); apart from the pooling, the only nonlinearity is one
    ReLU.
    """
    y, x = (((side - 4) // 2 - 4) // 2 for side in image_size)
    features = nn.Sequential(
        nn.Conv2d(n_channels, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten()
    )
    network = _named(
        features=features,
        hidden=nn.Sequential(nn.Linear(50 * y * x, 500), nn.ReLU()),
        output=nn.Linear(500, n_classes),
    )
    return _caffe_xavier(network)


def _all_cnn(n_channels: int, n_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """All-CNN-C (Springenberg et al. 2014) as in Buda et al. 2018, table 3: no padding in the last 3x3
    convolution, and a ReLU before the average.
    """
    del image_size

    def layer(n_in: int, n_out: int, side: int, *, stride: int = 1, padding: int = 0) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, side, stride=stride, padding=padding), nn.ReLU()]

    features = nn.Sequential(
        nn.Dropout(0.2),
        *layer(n_channels, 96, 3, padding=1),
        *layer(96, 96, 3, padding=1),
        *layer(96, 96, 3, stride=2, padding=1),
        nn.Dropout(0.5),
        *layer(96, 192, 3, padding=1),
        *layer(192, 192, 3, padding=1),
        *layer(192, 192, 3, stride=2, padding=1),
        nn.Dropout(0.5),
        *layer(192, 192, 3),
    )
    network = _named(
        features=features,
        hidden=nn.Sequential(*layer(192, 192, 1)),
        output=nn.Sequential(*layer(192, n_classes, 1)),
        mean=_mean(),
    )
    return _caffe_xavier(network)


def _two_class(n_channels: int, n_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """The network of the two-class report: 15,458 parameters, Keras's initialization (Glorot uniform, zero
    bias).

    The report gives neither the pooling nor the padding. Two max poolings make a step 3 times faster, and 700
    steps on the balanced set reach an accuracy of 0.89 (0.82 without them).
    """
    del image_size
    features = nn.Sequential(
        nn.Conv2d(n_channels, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3),
        nn.ReLU(),
        _mean(),
    )
    network = _named(
        features=features, hidden=nn.Sequential(nn.Linear(32, 32), nn.ReLU()), output=nn.Linear(32, n_classes)
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            _zero_bias(module)
    return network


def _named(**parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def _caffe_xavier(network: nn.Module) -> nn.Module:
    """Caffe's "xavier" filler: uniform with a variance of 1 / fan in (Glorot's has 2 / (fan in + fan out));
    zero bias.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = sqrt(3 / module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound)
            _zero_bias(module)
    return network


def _zero_bias(module: nn.Conv2d | nn.Linear) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)


CLASSIC: dict[str, Classic] = {
    "lenet5": Classic(_lenet5, ("output",), 16),
    "all_cnn": Classic(_all_cnn, ("hidden.0", "output.0"), 9),
    "resnet10": Classic(lambda n_channels, n_classes, _: ResNet10(n_channels, n_classes), ("output",), 32),
    "resnet32": Classic(lambda n_channels, n_classes, _: ResNet32(n_channels, n_classes), ("output",), 8),
    "two_class": Classic(_two_class, ("output",), 18),
}
