"""Several trainings in lockstep: one forward and backward pass for all networks of the same shape."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from brats_seg.core.outcome import Outcome, attempt
from brats_seg.training.step import Learned, Learner, Lesson
from brats_seg.training.steps import Training

T = TypeVar("T")
V = TypeVar("V")


def train_together(begin: Callable[[T], Training[V]], tasks: Sequence[T]) -> list[Outcome[T, V]]:
    """Run one training for each task in lockstep. The trainings do not affect each other.

    Each training keeps its own draws, loss, optimizer, records and end. Its weights differ from those of
    `alone` only by rounding. Learners with the same `Learner.stack_key` and inputs of the same shape take a
    step together. A learner without a key takes its step alone.

    Args:
        begin: generator function that starts the training of a task.
        tasks: any values.

    Returns:
        The outcome of each task, in the same order. An exception of a training is the error of its task. An
        exception in a common step, such as too little memory, is the error of all its trainings.
    """
    trainings = [begin(task) for task in tasks]
    outcomes: dict[int, Outcome[T, V]] = {}
    learned: Mapping[int, Learned | Exception | None] = dict.fromkeys(range(len(tasks)))
    stacks: dict[tuple[Learner, ...], _Stack] = {}
    while learned:
        lessons: dict[int, Lesson] = {}
        for number, last in learned.items():
            outcome = attempt(partial(_advance, trainings[number]), last, number)
            if isinstance(outcome.value, Lesson):
                lessons[number] = outcome.value
            else:
                value = outcome.value.value if outcome.value is not None else None
                outcomes[number] = Outcome(tasks[number], value=value, error=outcome.error, position=number)
        learned, stacks = _learn(lessons, stacks)
    return [outcomes[number] for number in range(len(tasks))]


def memory_of_one(network: nn.Module, image: Float[Tensor, "1 c y x"], *, batch_size: int) -> int:
    """Upper estimate of the memory of one network of a stack in training, in bytes: weights, gradients,
    momentum and running mean, each twice, and the output of each layer for a batch, four times.
    """
    outputs: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: outputs.append(output.numel()))
        for layer in network.modules()
    ]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    n_weights = sum(parameter.numel() for parameter in network.parameters())
    return 4 * (8 * n_weights + 4 * batch_size * sum(outputs))


def _learn(
    lessons: Mapping[int, Lesson], stacks: Mapping[tuple[Learner, ...], "_Stack"]
) -> tuple[dict[int, Learned | Exception], dict[tuple[Learner, ...], "_Stack"]]:
    """Take the steps of all lessons. Return their results, and the stacks for the next step: stacks with the
    same learners are used again, and the others are new.
    """
    groups: dict[Any, list[int]] = {}
    for number, lesson in lessons.items():
        key = lesson.learner.stack_key
        groups.setdefault(number if key is None else (key, lesson.inputs.shape), []).append(number)
    learned: dict[int, Learned | Exception] = {}
    kept = {}
    for numbers in groups.values():
        group = [lessons[number] for number in numbers]
        try:
            if len(group) == 1:
                learned[numbers[0]] = group[0].learn()
                continue
            learners = tuple(lesson.learner for lesson in group)
            kept[learners] = stacks.get(learners) or _Stack(learners)
            learned |= zip(numbers, kept[learners].learn(group), strict=True)
        except Exception as error:
            learned |= dict.fromkeys(numbers, error)
    return learned, kept


@dataclass(frozen=True)
class _Ended(Generic[V]):
    value: V


def _advance(training: Training[V], learned: Learned | Exception | None) -> Lesson | _Ended[V]:
    try:
        if isinstance(learned, Exception):
            training.throw(learned)
        return training.send(learned)  # type: ignore[arg-type]  # None starts a generator
    except StopIteration as end:
        return _Ended(end.value)


class _Stack:
    """Networks of the same shape. Each parameter and its gradient are parts of one tensor for all
    networks.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        """Move the parameters of the learners into common tensors (N, *parameter)."""
        self._network = learners[0].trained
        self._parameters: dict[str, Tensor] = {}
        self._gradients: list[Tensor] = []
        for name, parameter in self._network.named_parameters():
            own = [learner.trained.get_parameter(name) for learner in learners]
            values = torch.stack([one.detach() for one in own])
            self._parameters[name] = values.detach().requires_grad_(parameter.requires_grad)
            for one, value in zip(own, values, strict=True):
                one.data = value
            if parameter.requires_grad:
                gradients = self._parameters[name].grad = torch.zeros_like(values)
                self._gradients.append(gradients)
                for one, gradient in zip(own, gradients, strict=True):
                    one.grad = gradient

    def learn(self, lessons: Sequence[Lesson]) -> list[Learned]:
        """One step of each learner, in their order."""
        runtime = lessons[0].learner.runtime
        torch._foreach_zero_(self._gradients)
        with runtime.one_shape():
            with runtime.autocast():
                inputs = torch.stack([lesson.inputs for lesson in lessons])
                logits = vmap(self._forward)(self._parameters, inputs)
            losses = [
                lesson.learner.loss_on(outputs, lesson.targets, lesson.second)
                for lesson, outputs in zip(lessons, logits.unbind(), strict=True)
            ]
            torch.stack(losses).sum().backward()
        for lesson in lessons:
            lesson.learner.move(lesson.number)
        return [(loss.detach(), lesson.wishes) for loss, lesson in zip(losses, lessons, strict=True)]

    def _forward(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self._network, parameters, (inputs,))
        return outputs
