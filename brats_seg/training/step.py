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
"""A batch of patches; float32 in training, float64 to check against."""
AnyTargets = Integer[Tensor, "b *side"]
"""Class of each voxel of a patch, or of an image as a whole (then int64 where there are more than 255)."""
Middle = Integer[Tensor, "b *middle"]
"""Targets of the middle of each patch."""


class Second(NamedTuple):
    """The second label of each example of a batch, where examples are mixed.

    Attributes:
        targets: as the first targets.
        share: float32 (B,): weight of the loss for the first targets; the rest is that for the second.
    """

    targets: AnyTargets
    share: Float32[Tensor, " b"]


Learned = tuple[Tensor, tuple[bool, ...]]
"""The loss of a whole batch, a scalar that may still be computing, and the wishes that hold for all ranks."""


class Lesson(NamedTuple):
    """What one step is learned from; see `Learner.learn`."""

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
    """How the weights move, step by step.

    Attributes:
        optimizer: its knobs.
        n_steps: of the whole schedule.
        batch_size: examples of a batch over all ranks.
        ema: decay of the running mean of the weights; 0 for none.
        seed: dropout derives from it.
        accumulate: parts of a batch that go through the network one after the other; batch norm sees each by
            itself.
        first_step: number of the step that the schedule begins at.
    """

    optimizer: Optimizer
    n_steps: int
    batch_size: int
    ema: float = 0.0
    seed: int = 0
    accumulate: int = 1
    first_step: int = 0


class Learner:
    """A network and all that moves with it. Several ranks hold equal ones and learn from their parts of one
    batch.
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
        """Place a network on the runtime's device.

        Args:
            network: freshly built, or as an earlier phase left it.
            loss: see `make_loss`.
            schedule: how the weights move.
            runtime: device, precision and ranks.
            only: the parts of the network that learn; none for all of it. All else is frozen, and the whole
                network stays in evaluation mode: neither batch-norm statistics nor dropout have a part.
            head: a layer of the network that learns by itself, where the batches hold what it is given; None
                for the whole network.
            directions: of the output weights, which are kept at each step; None lets all of them move.

        Raises:
            UsageError: more parts than a rank has examples.
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
        # Small gradients are 0 in float16: the loss is scaled up, by as much as does not overflow.
        self._scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.dtype_autocast == torch.float16
        )
        self.schedule, self.runtime = schedule, runtime
        self._drops_out = _drops_out(self.trained)

    @cached_property
    def stack_key(self) -> Any:
        """What a network has in common with those it can learn together with (`stack.train_together`); None
        for a network that learns by itself.

        Batch norm changes its statistics in each pass and dropout draws from the one generator of torch:
        such networks learn by themselves, and so do several ranks, parts of a batch, compiled networks and
        losses that are scaled for float16.
        """
        runtime, plan = self.runtime, self.schedule
        is_own = not can_stack(self.trained) or runtime.world_size > 1 or plan.accumulate > 1
        if is_own or runtime.compile != "never":
            return None
        shapes = [(name, p.shape, p.requires_grad) for name, p in self.trained.named_parameters()]
        return None if self._scaler.is_enabled() else (str(self.trained), *shapes)

    def begin_epoch(self) -> None:
        """Put the network back into the mode it learns in."""
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
            inputs, targets: on the runtime's device. Where the network's output is smaller than its input,
                the targets' middle counts.
            number: of the step in the run, from 0; the learning rate and dropout follow from it.
            second: the second labels of mixed examples; None where they have one alone.
            wishes: what this rank asks for; a wish of any rank holds for all.

        Returns:
            The loss of the whole batch, a scalar that may still be computing, and the wishes that hold.
        """
        if self._drops_out:
            # Dropout takes torch's global generator: seeded by the step, so that a resumed run drops the
            # same.
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
        """Add the gradients of a part of a batch. Gives its share of the loss of the whole batch: parts and
        ranks add up to it, whatever their sizes.
        """
        with self.runtime.autocast():
            outputs = self._exchange.network(part)
        loss = self.loss_on(outputs, truth, second)
        self._scaler.scale(loss).backward()
        return loss.detach()

    def loss_on(self, outputs: Tensor | Sequence[Tensor], truth: AnyTargets, second: Second | None) -> Tensor:
        """The share that a part of a batch has in the loss of the whole batch, a scalar.

        Args:
            outputs: logits (B, K, *patch) of the part, or several under deep supervision.
            truth, second: as `learn` has them.
        """
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        middle = tuple(logits.shape[2:])
        losses = supervised_loss(self.loss, outputs, center_crop(truth, middle))
        if second is not None:
            others = supervised_loss(self.loss, outputs, center_crop(second.targets, middle))
            losses = torch.lerp(others, losses, second.share.to(losses.dtype))
        return losses.sum() / self.schedule.batch_size

    def evaluated(self) -> nn.Module:
        """The network that is scored, mined with and saved to predict with: the running mean where there is
        one; in evaluation mode.
        """
        network = self.mean.network if self.mean is not None else self.network
        self.runtime.share_buffers(network)
        return network.eval()

    def rate(self, number: int) -> float:
        """Learning rate of step `number`."""
        plan = self.schedule
        return learning_rate(plan.optimizer, number - plan.first_step, n_steps=plan.n_steps)

    def weights(self) -> dict[str, Tensor]:
        """State of the network to predict with."""
        return (self.mean.network if self.mean is not None else self.network).state_dict()

    def state_dict(self) -> dict[str, Any]:
        """All that moves but `weights`, which stand beside it in a checkpoint."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "directions": {} if self._directions is None else self._directions.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, weights: Mapping[str, Tensor]) -> None:
        """Go on where `state` and `weights` were taken, to the bit."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled() and state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        if self._directions is not None:  # an older checkpoint has none: those of its weights
            self._directions.load_state_dict(state.get("directions", {}))
        if self.mean is not None:
            self.mean.network.load_state_dict(weights)

    def move(self, number: int) -> None:
        """Step `number` of the run, once the gradients are there."""
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
    """Whether a network has neither dropout nor statistics of batch norm, so that it can learn together with
    others of its shape.
    """
    return not _drops_out(network) and not list(network.buffers())


def _drops_out(network: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules())


def center_crop(targets: AnyTargets, shape: tuple[int, ...]) -> Middle:
    """The middle of targets (B, *patch), `shape` wide: the center voxel, at index size // 2, stays the
    center.
    """
    where = tuple(
        slice((side - kept) // 2, (side - kept) // 2 + kept)
        for side, kept in zip(targets.shape[1:], shape, strict=True)
    )
    return targets[(slice(None), *where)]


def count_middle(targets: AnyTargets, *, margin: int, n_classes: int) -> Int64[Tensor, " k"]:
    """Voxels of each class, and in the last place all others, of targets (B, *patch) without a rim of
    `margin` voxels; on their device.
    """
    middle = center_crop(targets, tuple(side - 2 * margin for side in targets.shape[1:]))
    inside = torch.stack([(middle == k).sum() for k in range(n_classes)])  # bincount makes a GPU wait
    return torch.cat([inside, middle.numel() - inside.sum(dim=0, keepdim=True)])


def _freeze(network: nn.Module, *, but: Sequence[nn.Module]) -> None:
    for parameter in network.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for part in but:
        part.requires_grad_(True)
