"""One optimizer step: forward, backward, weights, running mean of the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Integer
from torch import Tensor, nn

from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Optimizer
from brats_seg.models.deep_supervision import supervised_loss
from brats_seg.models.losses import Loss
from brats_seg.models.output_rows import Directions
from brats_seg.training.exchange import Exchange
from brats_seg.training.optimizer import RunningMean, learning_rate, make_optimizer

AnyInputs = Float[Tensor, "b m *patch"]
"""A batch of patches; float32 in training, float64 in checks."""
AnyTargets = Integer[Tensor, "b *side"]
"""Class of each voxel of a patch, or class of a whole image (then int64 if there are more than 255
classes).
"""
Middle = Integer[Tensor, "b *middle"]
"""Targets of the middle part of each patch."""


class Second(NamedTuple):
    """The second label of each example of a batch with mixed examples.

    Attributes:
        targets: same form as the first targets.
        share: float32 (B,): weight of the loss for the first targets; the loss for the second targets has
            weight 1 - share.
    """

    targets: AnyTargets
    share: Float32[Tensor, " b"]


Learned = tuple[Tensor, tuple[bool, ...]]
"""The loss of a whole batch (a scalar whose computation may still run on the GPU), and the wishes that hold
for all ranks.
"""


class Lesson(NamedTuple):
    """The arguments of one step; see `Learner.learn`."""

    learner: "Learner"
    inputs: AnyInputs
    targets: AnyTargets
    number: int
    second: Second | None
    wishes: tuple[bool, ...]

    def learn(self) -> Learned:
        """Take the step."""
        return self.learner.learn(
            self.inputs, self.targets, number=self.number, second=self.second, wishes=self.wishes
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The schedule of the weight updates.

    Attributes:
        optimizer: knobs of the optimizer.
        n_steps: number of steps of the whole schedule.
        batch_size: number of examples of a batch over all ranks.
        ema: decay of the running mean of the weights; 0 for no running mean.
        seed: seed of dropout.
        accumulate: number of parts of a batch that are processed one after the other; batch norm uses each
            part separately.
        first_step: number of the first step of the schedule.
    """

    optimizer: Optimizer
    n_steps: int
    batch_size: int
    ema: float = 0.0
    seed: int = 0
    accumulate: int = 1
    first_step: int = 0


class Learner:
    """A network with its optimizer and the rest of its training state. Several ranks hold equal learners, and
    each learns from its part of a batch.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: Loss,
        schedule: Schedule,
        runtime: Runtime,
        only: Sequence[nn.Module] = (),
        head: nn.Module | None = None,
        directions: Directions | None = None,
    ) -> None:
        """Move a network to the device of the runtime.

        Args:
            network: newly built, or the result of an earlier phase.
            loss: see `make_loss`.
            schedule: schedule of the weight updates.
            runtime: device, precision and ranks.
            only: the parts of the network to train; empty for the whole network. All other parts are frozen,
                and the whole network stays in evaluation mode: batch-norm statistics do not change, and there
                is no dropout.
            head: the only layer to train, if the batches contain the input of this layer; None for the whole
                network.
            directions: directions of the output weights that are kept in each step; None for no such limit.

        Raises:
            UsageError: `accumulate` is larger than the number of examples of a rank.
        """
        n_examples = schedule.batch_size // runtime.world_size
        if not 1 <= schedule.accumulate <= n_examples:
            raise UsageError(
                f"training.accumulate {schedule.accumulate}: a batch of {n_examples} examples has 1 to "
                f"{n_examples} parts"
            )
        self.network = runtime.place(network)
        self.loss = loss
        self._all_learns, self._directions = not only, directions
        if only:
            _freeze(self.network, but=only)
        self.mean = RunningMean(self.network, decay=schedule.ema) if schedule.ema > 0 else None
        self.trained = self.network if head is None else head
        self._optimizer = make_optimizer(schedule.optimizer, self.trained)
        self._moving = [p for p in self.trained.parameters() if p.requires_grad]
        self._exchange = Exchange(self.trained, runtime=runtime)
        # Small gradients become 0 in float16. Therefore the loss is scaled up as far as possible without
        # overflow.
        self._scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.dtype_autocast == torch.float16
        )
        self.schedule, self.runtime = schedule, runtime
        self._drops_out = _drops_out(self.trained)

    @cached_property
    def stack_key(self) -> Any:
        """A key that is equal for all networks that can be trained together (`stack.train_together`); None
        for a network that is trained alone.

        Networks with batch norm are trained alone, because batch norm changes its statistics in each pass.
        Networks with dropout are trained alone, because dropout uses torch's global generator. The same holds
        for several ranks, parts of a batch, compiled networks, and losses that are scaled for float16.
        """
        runtime, plan = self.runtime, self.schedule
        is_own = not can_stack(self.trained) or runtime.world_size > 1 or plan.accumulate > 1
        if is_own or runtime.compile != "never":
            return None
        shapes = [(name, p.shape, p.requires_grad) for name, p in self.trained.named_parameters()]
        return None if self._scaler.is_enabled() else (str(self.trained), *shapes)

    def begin_epoch(self) -> None:
        """Set the network to its mode for training."""
        self.trained.train(self._all_learns)

    def learn(
        self,
        inputs: AnyInputs,
        targets: AnyTargets,
        *,
        number: int,
        second: Second | None = None,
        wishes: tuple[bool, ...] = (),
    ) -> Learned:
        """One step on this rank's part of a batch.

        Args:
            inputs, targets: on the device of the runtime. If the output of the network is smaller than its
                input, only the middle part of the targets counts.
            number: number of the step in the run, from 0; it determines the learning rate and dropout.
            second: the second labels of mixed examples; None if each example has one label.
            wishes: requests of this rank, such as stopping. A request of one rank holds for all ranks.

        Returns:
            The loss of the whole batch (a scalar whose computation may still run on the GPU), and the wishes
            that hold for all ranks.
        """
        if self._drops_out:
            # Dropout uses torch's global generator. It is seeded by the step, so a resumed run has the same
            # dropout.
            words = np.random.SeedSequence([self.schedule.seed, number, self.runtime.rank])
            torch.manual_seed(int(words.generate_state(1)[0]))
        self._optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        n_parts = self.schedule.accumulate
        seconds: list[Second | None] = [None] * n_parts
        if second is not None:
            halves = zip(*(values.tensor_split(n_parts) for values in second), strict=True)
            seconds = [Second(targets, share) for targets, share in halves]
        for part, truth, other in zip(
            inputs.tensor_split(n_parts), targets.tensor_split(n_parts), seconds, strict=True
        ):
            which: Literal["last", "earlier"] = "last" if len(losses) == n_parts - 1 else "earlier"
            with self.runtime.one_shape(), self._exchange.part(which):
                losses.append(self._backward(part, truth, other))
        total, wishes = self._exchange.share(sum(losses[1:], start=losses[0]), wishes)
        self.move(number)
        return total, wishes

    def _backward(self, part: AnyInputs, truth: AnyTargets, second: Second | None) -> Tensor:
        """Add the gradients of a part of a batch. Return its share of the loss of the whole batch. The shares
        of all parts and ranks sum to the loss of the batch, also with different sizes.
        """
        with self.runtime.autocast():
            outputs = self._exchange.network(part)
        loss = self.loss_on(outputs, truth, second)
        self._scaler.scale(loss).backward()
        return loss.detach()

    def loss_on(self, outputs: Tensor | Sequence[Tensor], truth: AnyTargets, second: Second | None) -> Tensor:
        """The share of a part of a batch in the loss of the whole batch, a scalar.

        Args:
            outputs: logits (B, K, *patch) of the part, or several logits with deep supervision.
            truth, second: targets and second labels as in `learn`.
        """
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        middle = tuple(logits.shape[2:])
        losses = supervised_loss(self.loss, outputs, center_crop(truth, middle))
        if second is not None:
            others = supervised_loss(self.loss, outputs, center_crop(second.targets, middle))
            losses = torch.lerp(others, losses, second.share.to(losses.dtype))
        return losses.sum() / self.schedule.batch_size

    def evaluated(self) -> nn.Module:
        """The network for validation, mining and prediction, in evaluation mode. Its weights are the running
        mean if there is one.
        """
        network = self.mean.network if self.mean is not None else self.network
        self.runtime.share_buffers(network)
        return network.eval()

    def rate(self, number: int) -> float:
        """The learning rate of step `number`."""
        plan = self.schedule
        return learning_rate(plan.optimizer, number - plan.first_step, n_steps=plan.n_steps)

    def weights(self) -> dict[str, Tensor]:
        """State of the network for prediction."""
        return (self.mean.network if self.mean is not None else self.network).state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The training state without `weights`, which a checkpoint stores separately."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "directions": {} if self._directions is None else self._directions.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, weights: Mapping[str, Tensor]) -> None:
        """Continue bit-exactly from a saved `state` and its `weights`."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled() and state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        if self._directions is not None:  # an older checkpoint has no directions: use those of its weights
            self._directions.load_state_dict(state.get("directions", {}))
        if self.mean is not None:
            self.mean.network.load_state_dict(weights)

    def move(self, number: int) -> None:
        """Update the weights in step `number` of the run, after the gradients are computed."""
        self._scaler.unscale_(self._optimizer)
        if (clip_norm := self.schedule.optimizer.clip_norm) is not None:
            nn.utils.clip_grad_norm_(self._moving, clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate(number) * group.get("lr_factor", 1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._directions is not None:
            self._directions.keep()
        if self.mean is not None:
            self.mean.update(self.network, n_steps=number - self.schedule.first_step + 1)


def can_stack(network: nn.Module) -> bool:
    """Whether a network has neither dropout nor batch-norm statistics, so that it can be trained together
    with other networks of the same shape.
    """
    return not _drops_out(network) and not list(network.buffers())


def _drops_out(network: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules())


def center_crop(targets: AnyTargets, shape: tuple[int, ...]) -> Middle:
    """The middle part of targets (B, *patch) with sides `shape`. The center voxel, at index size // 2, stays
    the center.
    """
    where = tuple(
        slice((side - kept) // 2, (side - kept) // 2 + kept)
        for side, kept in zip(targets.shape[1:], shape, strict=True)
    )
    return targets[(slice(None), *where)]


def count_middle(targets: AnyTargets, *, margin: int, n_classes: int) -> Int64[Tensor, " k"]:
    """Number of voxels of each class in targets (B, *patch) without a border of `margin` voxels, on the
    device of the targets. The last entry counts all other voxels.
    """
    middle = center_crop(targets, tuple(side - 2 * margin for side in targets.shape[1:]))
    inside = torch.stack([(middle == k).sum() for k in range(n_classes)])  # bincount would make a GPU wait
    return torch.cat([inside, middle.numel() - inside.sum(dim=0, keepdim=True)])


def _freeze(network: nn.Module, *, but: Sequence[nn.Module]) -> None:
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for part in but:
        part.requires_grad_(True)
