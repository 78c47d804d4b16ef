"""One optimizer step: augmentation, forward, backward, weights, running mean of the weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brats_seg.config import Optimizer
from brats_seg.core.runtime import Runtime
from brats_seg.core.tensors import Inputs, Targets
from brats_seg.models.losses import Loss
from brats_seg.training.optimizer import RunningMean, learning_rate, make_optimizer


class Learner:
    """A network and all that moves with it. Several ranks hold equal ones and learn from their parts of one batch."""

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: Loss,
        optimizer: Optimizer,
        n_steps: int,
        batch_size: int,
        ema: float,
        seed: int,
        runtime: Runtime,
    ) -> None:
        """Place a network on the runtime's device.

        Args:
            network: freshly built.
            loss: see `make_loss`.
            optimizer: its knobs.
            n_steps: of the whole run, for the schedule.
            batch_size: examples of a batch over all ranks.
            ema: decay of the running mean of the weights; 0 for none.
            seed: dropout derives from it.
            runtime: device, precision and ranks.
        """
        self.network = runtime.place(network)
        self.mean = RunningMean(self.network, decay=ema) if ema > 0 else None
        self._loss = loss
        self._knobs = optimizer
        self._optimizer = make_optimizer(optimizer, self.network)
        self._n_steps, self._batch_size, self._seed, self._runtime = n_steps, batch_size, seed, runtime
        self._drops_out = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules())

    def learn(self, inputs: Inputs, targets: Targets, *, number: int, wishes: tuple[bool, ...] = ()) -> tuple[Tensor, tuple[bool, ...]]:
        """One step on this rank's part of a batch.

        Args:
            inputs, targets: on the runtime's device.
            number: of the step in the run, from 0; the learning rate and dropout follow from it.
            wishes: what this rank asks for; a wish of any rank holds for all.

        Returns:
            The loss of the whole batch, a scalar that may still be computing, and the wishes that hold.
        """
        if self._drops_out:
            # Dropout takes torch's global generator: seeded by the step, so that a resumed run drops the same.
            torch.manual_seed(int(np.random.SeedSequence([self._seed, number, self._runtime.rank]).generate_state(1)[0]))
        with self._runtime.autocast():
            logits = self.network(inputs)
        # This rank's share of the mean over the whole batch: the ranks add up to it, whatever their parts.
        loss = self._loss(logits, targets).sum() / self._batch_size
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        total, wishes = self._add_up(loss.detach(), wishes)
        self._move(number)
        return total, wishes

    def evaluated(self) -> nn.Module:
        """The network that is scored, mined with and saved to predict with: the running mean where there is one; in evaluation mode."""
        network = self.mean.network if self.mean is not None else self.network
        self._runtime.share_buffers(network)
        return network.eval()

    def rate(self, number: int) -> float:
        """Learning rate of step `number`."""
        return learning_rate(self._knobs, number, n_steps=self._n_steps)

    def weights(self) -> dict[str, Tensor]:
        """State of the network to predict with."""
        return (self.mean.network if self.mean is not None else self.network).state_dict()

    def state_dict(self) -> dict[str, Any]:
        """All that moves but `weights`, which stand beside it in a checkpoint."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, weights: Mapping[str, Tensor]) -> None:
        """Go on where `state` and `weights` were taken, to the bit."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.mean is not None:
            self.mean.network.load_state_dict(weights)

    def _add_up(self, loss: Tensor, wishes: tuple[bool, ...]) -> tuple[Tensor, tuple[bool, ...]]:
        """Sum loss and gradients over the ranks, and exchange wishes, in one message."""
        if self._runtime.world_size == 1:
            return loss, wishes
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        asked = torch.tensor(wishes, dtype=loss.dtype, device=loss.device)
        message = self._runtime.sum_over_ranks(torch.cat([*(g.flatten() for g in gradients), loss.reshape(1), asked]))
        *sums, total, granted = message.split([*(g.numel() for g in gradients), 1, len(wishes)])
        for gradient, summed in zip(gradients, sums, strict=True):
            gradient.copy_(summed.view(gradient.shape))
        return total[0].clone(), tuple(bool(n) for n in granted.tolist())

    def _move(self, number: int) -> None:
        if self._knobs.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._knobs.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(number)
        self._optimizer.step()
        if self.mean is not None:
            self.mean.update(self.network, n_steps=number + 1)
