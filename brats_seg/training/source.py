"""A patch bank as the data source of a training: batches, hard examples, and scores of the inner cases."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.gather import Batch
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Hard, Training, Validation
from brats_seg.core.shapes import Ids
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.sampler import Draw
from brats_seg.imbalance.samplers import HardSampler
from brats_seg.inference.ready import ready_for_inference
from brats_seg.models.readout import Readout
from brats_seg.scans.labels import REGIONS
from brats_seg.training.augment import Augmenter
from brats_seg.training.log import Stopwatch
from brats_seg.training.mining import draw_candidates, find_hard
from brats_seg.training.step import count_middle
from brats_seg.training.steps import Examples
from brats_seg.training.validation import score_inner_cases


@dataclass(kw_only=True)
class BankSource:
    """The training patches of a bank, with the random transforms of the config.

    Attributes:
        bank: its selected cases are the training cases.
        augment: the transforms.
        margin: number of voxels on each side of the patch without output of the network. These voxels do not
            enter the loss.
        training: its number of steps gives the epoch of a draw, and epoch and position determine the
            transforms.
        runtime: its ranks share the search for hard examples.
        divisor: the sides of the network's input must be multiples of this number.
        readout: how class probabilities are computed from the logits of the network.
        watch: measures the time.
    """

    bank: PatchBank
    augment: Augmenter
    margin: int
    training: Training
    runtime: Runtime
    divisor: int
    readout: Readout = "softmax"
    watch: Stopwatch = field(default_factory=Stopwatch)
    _gathered: Batch | None = field(default=None, init=False)

    @property
    def index(self) -> ClassIndex:
        """The voxels of the training cases by class."""
        return self.bank.index

    def batch(self, draw: Draw, *, number: int) -> Examples:
        """The patches of a draw."""
        with self.watch("sampling_s"):
            parameters = self.augment.draw(
                epoch=number // self.training.steps + 1, positions=draw.positions,
                n_modalities=len(self.bank.modalities),
            )  # fmt: skip
            maps = self.augment.maps(parameters)
            self._gathered = batch = self.bank.batch(draw.ids, out=self._gathered, maps=maps)
            counts = batch.counts
            if self.margin:
                counts = count_middle(batch.targets, margin=self.margin, n_classes=len(self.bank.classes))
        with self.watch("augmentation_s"):
            inputs, targets = self.augment(batch.inputs, batch.targets, parameters=parameters)
        return Examples(inputs, targets, counts)

    def hard_pools(
        self, network: nn.Module, sampler: HardSampler, *, hard: Hard, seed: int
    ) -> Mapping[int, Ids]:
        """The hard voxels among `hard.subset` random voxels of each class. Without `hard.subset` the number
        of random voxels is the number of draws of the class in an epoch.
        """
        n_draws = sampler.requested * self.training.batch_size * self.training.steps
        n_draws = np.ceil(n_draws).astype(np.int64)
        candidates = draw_candidates(
            self.index,
            classes=sampler.hard_classes,
            n_of_class=n_draws if hard.subset is None else np.full_like(n_draws, hard.subset),
            seed=seed,
            epoch=sampler.epoch - 1,
            groups=sampler.groups,
        )
        return find_hard(
            ready_for_inference(network, runtime=self.runtime),
            self.bank,
            candidates=candidates,
            threshold=hard.threshold,
            runtime=self.runtime,
            divisor=self.divisor,
            readout=self.readout,
        )


def score_network(
    network: nn.Module, *, bank: PatchBank, validation: Validation, runtime: Runtime, divisor: int
) -> dict[str, float]:
    """The validation score of a network on the inner cases, and the mean Dice of each region.

    Args:
        network: the network in training.
        bank: its selected cases are the inner cases.
        validation: determines the score.
        runtime: its ranks share the cases.
        divisor: the sides of the network's input must be multiples of this number.
    """
    scores = score_inner_cases(
        ready_for_inference(network, runtime=runtime), bank, runtime=runtime, divisor=divisor,
        metric=validation.metric, of=validation.of,
    )  # fmt: skip
    return {"score": scores.value, **{f"dice_{region}": scores.dice[region] for region in REGIONS}}
