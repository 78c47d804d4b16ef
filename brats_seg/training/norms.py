"""Batch-norm statistics, measured again on whole training scans as in prediction."""

from copy import deepcopy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from brats_seg.bank.bank import PatchBank
from brats_seg.core.runtime import Runtime
from brats_seg.inference.dense import Feed, label_map
from brats_seg.inference.windowed import choose_window


def measure_norms(network: nn.Module, bank: PatchBank, *, divisor: int, runtime: Runtime) -> None:
    """Replace the running mean and variance of every batch norm, in place.

    Training collects the running statistics from augmented patches. Prediction uses whole scans without
    augmentation, and their statistics differ, especially after strong augmentation. Here the network
    processes the selected cases of the bank once, as in prediction: as a whole, or in windows if prediction
    needs windows (`choose_window`). Each pass is normalized by its own statistics, and the mean over the
    passes is kept (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", PreciseBN).

    Args:
        network: on the device of the runtime; a network without batch norms is not changed.
        bank: its selected cases are the training cases.
        divisor: the sides of the network's input must be multiples of this number.
        runtime: the passes use its precision; the statistics are float32.
    """
    measured = deepcopy(network).eval()
    if runtime.dtype_autocast is not None:
        measured = measured.to(runtime.dtype_autocast)
    norms = [
        module
        for module in measured.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    cases = bank.selected if norms else ()
    shapes = [(*bank.cases[case].shape, len(bank.modalities)) for case in cases]
    # The window is chosen before the norms are measured, because the choice runs the network on an empty
    # cube.
    windows = [
        choose_window(measured, patch_size=bank.patch_size, image_shape=shape, divisor=divisor)
        for shape in shapes
    ]
    for norm in norms:
        norm.float().reset_running_stats()
        norm.momentum = None  # the mean over all passes
        norm.train()
    shown = _AsItStands(measured)
    for case, window in zip(cases, windows, strict=True):
        feed = Feed(3 if len(bank.patch_size) == 3 else 2, divisor, window, bank.slices_around)
        label_map(shown, bank.volume(case)[0], feed=feed)
    statistics = {
        name: buffer
        for name, buffer in measured.named_buffers()
        if name.rpartition(".")[2].startswith("running_")
    }
    for name, buffer in network.named_buffers():
        if name in statistics:
            buffer.copy_(statistics[name])


class _AsItStands(nn.Module):
    """A network whose modules keep their train or evaluation mode when `train` is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.margin = getattr(network, "margin", 0)

    def train(self, mode: bool = True) -> "_AsItStands":
        """Change nothing."""
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """The output of the network."""
        logits: Tensor = self.network(inputs)
        return logits
