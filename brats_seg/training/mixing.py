"""Two examples of a batch, mixed into one: mixup and remix."""

import numpy as np
import torch
from jaxtyping import Float32

from brats_seg.core.sections import Mix
from brats_seg.core.shapes import Counts, Ids
from brats_seg.imbalance.sampler import Draw
from brats_seg.training.step import Second
from brats_seg.training.steps import Examples


class Mixer:
    """Mixes each example of a batch with another one of it; see `sections.Mix`."""

    def __init__(self, mix: Mix, *, counts: Counts, seed: int, rank: int) -> None:
        """Take the knobs.

        Args:
            mix: the knobs.
            counts: training examples of each class.
            seed: of the run; the draws of a step follow from (seed, step, rank).
            rank: each rank mixes its own part of a batch.
        """
        self._mix, self._counts, self._words = mix, counts, (seed, rank)

    def __call__(self, examples: Examples, draw: Draw, *, number: int) -> Second:
        """Mix the inputs in place, and give the second labels.

        Args:
            examples: of the draw; float32 inputs (B, channels, *patch).
            draw: the classes of its ids decide in remix.
            number: of the step in the run.
        """
        seed, rank = self._words
        generator = np.random.default_rng([seed, number, rank])
        share = float(generator.beta(self._mix.alpha, self._mix.alpha))
        partner = generator.permutation(len(draw.classes))
        rows = torch.from_numpy(partner).to(examples.inputs.device)
        examples.inputs.lerp_(examples.inputs[rows], 1 - share)
        shares = self.label_shares(share, draw.classes, draw.classes[partner])
        return Second(examples.targets[rows], torch.from_numpy(shares).to(examples.inputs.device))

    def label_shares(self, share: float, first: Ids, second: Ids) -> Float32[np.ndarray, " b"]:
        """Weight of the first label of each example (Chou et al. 2020, section 3; mixup: the share itself).

        Args:
            share: of the first example in the inputs.
            first, second: class of each of the two examples.
        """
        shares = np.full(len(first), share, np.float32)
        if self._mix.kind == "remix":
            ratio = self._counts[first] / self._counts[second]
            if share < self._mix.threshold:
                shares[ratio >= self._mix.ratio] = 0
            if 1 - share < self._mix.threshold:
                shares[ratio <= 1 / self._mix.ratio] = 1
        return shares
