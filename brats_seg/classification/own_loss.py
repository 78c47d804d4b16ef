"""Training of networks that compute the loss of each image themselves."""

from dataclasses import dataclass

from torch import nn

from brats_seg.classification.fitting import Fitted, TrainingImages
from brats_seg.classification.source import ImageSource
from brats_seg.core.config import Config
from brats_seg.core.runtime import Runtime
from brats_seg.core.tensors import Logits, PerExample
from brats_seg.imbalance.sampler import Sampler
from brats_seg.models.losses import Loss
from brats_seg.training.loop import Loop
from brats_seg.training.phases import Method, Phase
from brats_seg.training.step import AnyTargets
from brats_seg.training.steps import alone


@dataclass(frozen=True, kw_only=True)
class OwnLoss(Method):
    """The training method of a network whose output is the loss of each image, (B, 1), instead of logits.

    Attributes:
        draws: the sampler; None for that of the config.
    """

    draws: Sampler | None = None

    def loss_of(self, phase: Phase, *, epoch: int) -> Loss:
        """The output of the network, unchanged."""
        return _as_given

    def make_sampler(self, phase: Phase, *, number: int = 1) -> Sampler:
        """The sampler of the only phase."""
        return super().make_sampler(phase, number=number) if self.draws is None else self.draws


def fit_own_loss(
    network: nn.Module,
    pool: ImageSource,
    config: Config,
    *,
    runtime: Runtime,
    draws: Sampler | None = None,
) -> Fitted:
    """Train a network that gives the loss of each image.

    Args:
        network: from images (B, C, Y, X) to losses (B, 1); changed in place.
        pool: the training images.
        config: config of the training; each of its epochs is one step.
        runtime: device and precision.
        draws: the sampler; None for that of the config.
    """
    method = OwnLoss(config=config, index=pool.index, runtime=runtime, targets="images", draws=draws)
    source, record = TrainingImages(pool, runtime=runtime), Fitted(network=network)
    loop = Loop(method=method, phase=method.first(), network=network, source=source, record=record)
    return alone(record.training(loop))


def _as_given(losses: Logits, targets: AnyTargets) -> PerExample:
    return losses[:, 0]
