"""One network on one imbalanced set: what is drawn, what is minimized, when it stops."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn
from torch.nn import functional

from brats_seg.classification.images import ImageSet
from brats_seg.classification.methods import Remedy
from brats_seg.classification.settings import StudySettings
from brats_seg.classification.source import ImageBatch, Pool
from brats_seg.core.config import Optimizer
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Counts, Ids, Shares
from brats_seg.imbalance.priors import LOSSES_WITH_A_PRIOR, class_weights, effective_prior
from brats_seg.imbalance.samplers import Draw, HardSampler, Sampler, make_sampler
from brats_seg.models.classic import make_classic, output_layers
from brats_seg.models.losses import Loss, make_loss
from brats_seg.training.augment import Augmenter
from brats_seg.training.step import Learner

LOSSES_AT_ONCE = 100
"""Iterations between two looks at the losses."""

Watch = Callable[[nn.Module], float]
"""A network in evaluation mode -> its validation score, higher is better."""
CurvePoint = dict[str, float]
Curve = Callable[[nn.Module], CurvePoint]


@dataclass
class Fitted:
    """A trained network.

    Attributes:
        network: in evaluation mode.
        seen: images of each class that entered the loss.
        prior: what it was trained under (draws x weights); None after a loss that has none.
        iterations: done; fewer than the budget where it stopped early.
        loss: mean over the last iterations, 100 at most; None where it was not finite.
        diverged: whether its loss or its weights stopped being numbers.
        validation: score on the validation images of the weights that were kept; None without such images, or
            where it diverged.
        curve: points by iteration.
    """

    network: nn.Module
    seen: Counts
    prior: Shares | None = None
    iterations: int = 0
    loss: float | None = None
    diverged: bool = False
    validation: float | None = None
    curve: list[CurvePoint] = field(default_factory=list)

    def look_at(self, losses: list[Tensor]) -> None:
        """Take in the losses of the last iterations, and empty the list."""
        mean = float(torch.stack(losses).double().mean())
        self.loss, self.diverged = (mean, False) if np.isfinite(mean) else (None, True)
        losses.clear()


def build_network(settings: StudySettings, images: ImageSet, *, seed: int, runtime: Runtime) -> nn.Module:
    """The study's network, freshly initialized from the seed, on the device.

    Raises:
        UsageError: `network.output_weights` "zero" where a ReLU follows the last layer: it would never learn.
    """
    n_channels, n_classes = images.n_channels, len(images.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make_classic(
            settings.network.name, n_channels=n_channels, n_classes=n_classes, image_size=images.image_size
        )
    if settings.network.output_weights == "zero":
        last = output_layers(settings.network.name, network)[-1]
        if not isinstance(last, nn.Linear):
            raise UsageError(
                f"network.output_weights 'zero': the last layer of '{settings.network.name}' has a ReLU "
                "behind it; take 'scaled'"
            )
        nn.init.zeros_(last.weight)
    return runtime.place(network)


def fit(
    network: nn.Module,
    pool: Pool,
    remedy: Remedy,
    *,
    settings: StudySettings,
    optimizer: Optimizer,
    seed: int,
    runtime: Runtime,
    watch: Watch | None = None,
    curve: Curve | None = None,
    on_step: Callable[[], object] | None = None,
) -> Fitted:
    """Train a network with a remedy.

    Args:
        network: see `build_network`; changed in place.
        pool: images of the imbalanced training set.
        remedy: how.
        settings: of the study: the budget, validation and record.
        optimizer: its knobs, with this network's rate.
        seed: of the draws, of dropout and of perturbed copies.
        runtime: device and precision.
        watch: validation score of the network as it is.
        curve: a point of the learning curve.
        on_step: called after each step.
    """
    counts = pool.index.counts
    weights = _weights(remedy, counts=counts)
    loss = _loss(remedy, weights, counts=counts)
    switch = round(remedy.knobs.weights_from * settings.training.iterations) if remedy.recipe.deferred else 0
    learner = make_learner(
        network,
        loss if switch == 0 else _loss(remedy, None, counts=counts),
        optimizer,
        settings,
        seed=seed,
        runtime=runtime,
    )
    draws = Draws(pool, remedy, settings, seed=seed, runtime=runtime)
    perturb = (
        _Perturber(remedy, counts=counts, seed=seed, image_size=pool.source.shape[1:3])
        if remedy.recipe.perturbs
        else None
    )
    batch: ImageBatch | None = None

    def step(number: int) -> tuple[Tensor, Draw]:
        nonlocal batch
        if number == switch:
            learner.loss = loss
        draw = draws.next(network)
        batch = pool.source.batch(draw.ids, number=number, out=batch)
        if perturb is not None:
            perturb(batch.inputs, draw, number=number)
        return learner.learn(batch.inputs, batch.targets, number=number)[0], draw

    fitted = _iterate(
        network,
        step,
        settings,
        n_classes=len(counts),
        watch=watch,
        curve=curve,
        on_step=on_step,
        set_mode=nn.Module.train,
    )
    fitted.prior = _prior(remedy, fitted.seen, weights, counts=counts)
    return fitted


def fit_second_phase(
    first: Fitted,
    pool: Pool,
    *,
    settings: StudySettings,
    optimizer: Optimizer,
    seed: int,
    runtime: Runtime,
    watch: Watch | None = None,
    curve: Curve | None = None,
    on_step: Callable[[], object] | None = None,
) -> Fitted:
    """Go on from a finished network: its output layers alone, at the natural frequencies (Havaei et al. 2017;
    Buda et al. 2018).

    A whole second schedule at a tenth of the rate (`training.phase2_lr_factor`), the plain cross-entropy. As
    for scans, the network stays in evaluation mode: its batch-norm statistics are fixed, and nothing is
    dropped out. The phase is not stopped early and keeps its last weights: by validation images of other
    frequencies than the training's the first would be best.

    Where the images are not cut anew each time, what the output layer gets is computed once for each image:
    50 times faster for LeNet-5, and the same numbers but for the order of additions.
    """
    to_the_end = settings.validation.model_copy(update={"checkpoint": "last", "patience": None})
    settings = settings.model_copy(update={"validation": to_the_end})
    network = deepcopy(first.network)
    layers = output_layers(settings.network.name, network)
    network.requires_grad_(False)
    for layer in layers:
        layer.requires_grad_(True)
    optimizer = optimizer.model_copy(update={"lr": optimizer.lr * settings.training.phase2_lr_factor})
    natural = Draws(pool, None, settings, seed=seed, runtime=runtime)
    features = _Features(network, layers[0], pool, runtime=runtime) if _is_fixed(layers, pool) else None
    moving = network if features is None else layers[0]
    learner = make_learner(moving, plain_loss(), optimizer, settings, seed=seed, runtime=runtime)

    def step(number: int) -> tuple[Tensor, Draw]:
        draw = natural.next(network)
        if features is not None:
            return learner.learn(*features(draw.ids), number=number)[0], draw
        batch = pool.source.batch(
            draw.ids, number=settings.training.iterations + number
        )  # other cuts than the first phase's
        return learner.learn(batch.inputs, batch.targets, number=number)[0], draw

    n_classes = pool.index.n_classes
    fitted = _iterate(
        network,
        step,
        settings,
        n_classes=n_classes,
        watch=watch,
        curve=curve,
        on_step=on_step,
        set_mode=nn.Module.eval,
    )
    fitted.prior = effective_prior(fitted.seen) if fitted.seen.any() else None
    return fitted


@torch.no_grad()
def probabilities(network: nn.Module, pool: Pool, *, runtime: Runtime) -> Float64[np.ndarray, "n k"]:
    """Class probabilities of every image of a pool, in its order; the network is in evaluation mode for it.

    The softmax is in float64: in float32 those of a sure network are exactly 1, and ties blur its ROC curve.
    Of an image that a diverging network gives no numbers for, all classes are alike.
    """
    with evaluating(network), runtime.autocast():
        logits = torch.cat([network(inputs).double() for inputs in pool.batches()])
    found: Float64[np.ndarray, "n k"] = torch.softmax(logits, 1).cpu().numpy()
    found[~np.isfinite(found).all(axis=1)] = 1 / found.shape[1]
    return found


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of the block; each module then gets its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Draws:
    """The batches of one training: a sampler of the heart, drawn anew where the remedy says so, fed with hard
    examples where it asks.
    """

    def __init__(
        self, pool: Pool, remedy: Remedy | None, settings: StudySettings, *, seed: int, runtime: Runtime
    ) -> None:
        """`remedy` None draws every image alike, each once in a pass."""
        self._pool, self._remedy, self._seed, self._runtime = pool, remedy, seed, runtime
        self._batch_size, self._iterations = settings.training.batch_size, settings.training.iterations
        self._n_made = 0
        self._sampler = self._make()

    def next(self, network: nn.Module) -> Draw:
        """The next batch; between two passes the network may be asked what it finds hard."""
        if self._sampler.step == 0 and self._sampler.epoch > 1:
            if self._remedy is not None and self._remedy.knobs.redraw == "epoch":
                self._sampler = self._make()
            elif isinstance(self._sampler, HardSampler):
                self._sampler.accept_pools(self._hard(network, self._sampler))
        return self._sampler.next()

    def _make(self) -> Sampler:
        self._n_made += 1
        seed = int(np.random.SeedSequence([self._seed, self._n_made]).generate_state(1)[0])
        plan: dict[str, Any] = {
            "batch_size": self._batch_size,
            "steps": None,
            "seed": seed,
            "allow_absent_class": True,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an absent class is the study's own wish
            if self._remedy is None:
                return make_sampler("random", self._pool.index, **plan)
            recipe, hard = self._remedy.recipe, self._remedy.knobs.hard
            if not recipe.whole_epochs:
                plan["steps"] = self._iterations
            if recipe.sampler == "hard":
                plan |= {"hard_classes": hard.classes, "recycle": hard.recycle, "max_age": hard.max_age}
            return make_sampler(
                recipe.sampler, self._pool.index, imbalance_ratio=self._remedy.imbalance_ratio, **plan
            )

    def _hard(self, network: nn.Module, sampler: HardSampler) -> dict[int, Ids]:
        """Images that the network gets wrong, or right with a probability under the threshold; of a random
        `subset` of each class.
        """
        assert self._remedy is not None
        knobs, index = self._remedy.knobs.hard, self._pool.index
        generator = np.random.Generator(
            np.random.Philox(key=np.array([self._seed, sampler.epoch], np.uint64))
        )
        found = {}
        for k in sampler.hard_classes:
            ids = np.sort(index.random_ids(k, knobs.subset or int(index.counts[k]), generator=generator))
            if len(ids):
                known = probabilities(network, self._pool.restrict(ids), runtime=self._runtime)
                found[k] = ids[(known.argmax(1) != k) | (known[:, k] < knobs.threshold)]
        return found


class _Features:
    """What the output layer is given for each image, computed once."""

    @torch.no_grad()
    def __init__(self, network: nn.Module, layer: nn.Module, pool: Pool, *, runtime: Runtime) -> None:
        """Run the network up to `layer`."""
        given: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].float()))
        with evaluating(network), runtime.autocast():
            for inputs in pool.batches():
                network(inputs)
        hook.remove()
        self._features, self._source = torch.cat(given), pool.source

    def __call__(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Features and targets of a batch."""
        return self._features.index_select(
            0, torch.from_numpy(ids).to(self._features.device)
        ), self._source.targets(ids)


class _Perturber:
    """Changes the images of the rare classes of a batch, each time in another way."""

    def __init__(self, remedy: Remedy, *, counts: Counts, seed: int, image_size: tuple[int, ...]) -> None:
        self._augment = Augmenter(remedy.knobs.augment, seed=seed, patch_size=image_size)
        self._is_rare = counts < counts.max()

    def __call__(self, inputs: Tensor, draw: Draw, *, number: int) -> None:
        rare = np.flatnonzero(self._is_rare[draw.classes])
        if rare.size:
            rows = torch.from_numpy(rare).to(inputs.device)
            chosen = inputs.index_select(0, rows)
            nowhere = torch.zeros((len(rare), *inputs.shape[2:]), dtype=torch.uint8, device=inputs.device)
            parameters = self._augment.draw(epoch=number, positions=rare, n_modalities=inputs.shape[1])
            maps = self._augment.maps(parameters)
            moved = chosen if maps is None else _moved(chosen, maps.matrices[:, 1:, 1:])
            inputs[rows] = self._augment(moved, nowhere, parameters=parameters)[0]


def _moved(images: Tensor, matrices: Float32[np.ndarray, "b 2 2"]) -> Tensor:
    """Images (B, C, Y, X) rotated and scaled about their middle, linearly, with 0 beyond the image.

    A bank reads a rotated patch from the volume around the patch; an image has nothing around it.
    """
    height, width = images.shape[2:]
    # `affine_grid` takes x before y, and each axis from -1 to 1 whatever its length.
    stretch = np.array([[1, height / width], [width / height, 1]], np.float32)
    maps = torch.from_numpy(np.pad(matrices[:, ::-1, ::-1] * stretch, ((0, 0), (0, 0), (0, 1)))).to(images)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _iterate(
    network: nn.Module,
    step: Callable[[int], tuple[Tensor, Draw]],
    settings: StudySettings,
    *,
    n_classes: int,
    watch: Watch | None,
    curve: Curve | None,
    on_step: Callable[[], object] | None,
    set_mode: Callable[[nn.Module], object],
) -> Fitted:
    """Take the steps; stop where the loss is no number or the validation score has not risen for long."""
    fitted, knobs, every = (
        Fitted(network, np.zeros(n_classes, np.int64)),
        settings.validation,
        settings.record.curve_every,
    )
    n_steps = settings.training.iterations
    losses: list[Tensor] = []
    best_score, best, waited = float("-inf"), None, 0
    set_mode(network)
    for number in range(n_steps):
        loss, draw = step(number)
        fitted.seen += np.bincount(draw.classes, minlength=n_classes)
        fitted.iterations = number + 1
        if on_step is not None:
            on_step()
        losses.append(loss)
        if len(losses) == LOSSES_AT_ONCE:
            fitted.look_at(losses)
            if fitted.diverged:
                break
        if curve is not None and every and fitted.iterations % every == 0:
            fitted.curve.append({"iteration": fitted.iterations, **curve(network)})
        if watch is not None and (fitted.iterations % knobs.every == 0 or fitted.iterations == n_steps):
            fitted.validation = watch(network)
            if fitted.validation > best_score:
                best_score, waited = fitted.validation, 0
                best = deepcopy(network.state_dict()) if knobs.checkpoint == "best" else None
            else:
                waited += 1
            if knobs.patience is not None and waited >= knobs.patience:
                break
    if losses:
        fitted.look_at(losses)
    if best is not None:
        network.load_state_dict(best)
        fitted.validation, fitted.diverged = best_score, False
    fitted.diverged |= not all(torch.isfinite(weights).all() for weights in network.state_dict().values())
    if fitted.diverged:
        fitted.validation = None
    network.eval()
    return fitted


def make_learner(
    network: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    settings: StudySettings,
    *,
    seed: int,
    runtime: Runtime,
) -> Learner:
    """The step of the segmentation wing, with the study's budget."""
    n_steps, batch_size = settings.training.iterations, settings.training.batch_size
    return Learner(
        network,
        loss=loss,
        optimizer=optimizer,
        n_steps=n_steps,
        batch_size=batch_size,
        ema=0.0,
        seed=seed,
        runtime=runtime,
    )


def plain_loss() -> Loss:
    """The cross-entropy of a class for each image."""
    return make_loss("cross_entropy", outside="none")


def check_loss(remedy: Remedy, *, counts: Counts) -> None:
    """Raise `UsageError` where a remedy's loss cannot do with so many images of each class."""
    _loss(remedy, _weights(remedy, counts=counts), counts=counts)


def _weights(remedy: Remedy, *, counts: Counts) -> Shares | None:
    return None if remedy.recipe.weights == "none" else class_weights(remedy.recipe.weights, counts)


def _loss(remedy: Remedy, weights: Shares | None, *, counts: Counts) -> Loss:
    given = None if weights is None else weights.tolist()
    prior = (counts / counts.sum()).tolist() if remedy.recipe.loss == "logit_adjusted" else None
    return make_loss(
        remedy.recipe.loss, outside="none", class_weights=given, prior=prior, tau=remedy.knobs.tau
    )


def _prior(remedy: Remedy, seen: Counts, weights: Shares | None, *, counts: Counts) -> Shares | None:
    """What the network was trained under: images that entered the loss x their weight, over what the loss
    itself divided out.
    """
    if remedy.recipe.loss not in LOSSES_WITH_A_PRIOR or not seen.any():
        return None
    factor = np.ones(len(seen)) if weights is None else weights
    if remedy.recipe.loss == "logit_adjusted":
        factor = factor / np.maximum(counts / counts.sum(), 1e-12) ** remedy.knobs.tau
    return effective_prior(seen, class_weights=factor)


def _is_fixed(layers: Sequence[nn.Module], pool: Pool) -> bool:
    """Whether what the one output layer is given never changes in the second phase, and it is the last."""
    return pool.source is pool.plain and len(layers) == 1 and isinstance(layers[0], nn.Linear)
