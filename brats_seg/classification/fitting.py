"""One network on one imbalanced set: which images it is shown, when it is looked at, when it stops."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn
from torch.nn import functional

from brats_seg.classification.images import ImageSet
from brats_seg.classification.settings import StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.config import Config, Loss
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.shapes import Counts, Ids, Shares
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.samplers import Draw, HardSampler, Sampler
from brats_seg.inference.dense import evaluating
from brats_seg.models.classic import make_classic, output_layers
from brats_seg.training.augment import Augmenter
from brats_seg.training.mining import draw_candidates, hard_among
from brats_seg.training.phases import NATURAL, Method, Phase, sampler_of
from brats_seg.training.steps import Best, Examples, Steps

LOSSES_AT_ONCE = 100
"""Steps between two looks at the losses."""
PASSES = ("random", "oversample", "undersample", "hard")
"""Samplers that show every image in a pass; of the others each draw is independent."""

Score = Callable[[nn.Module], float]
"""A network -> its score, higher is better."""
CurvePoint = dict[str, float]
Curve = Callable[[nn.Module], CurvePoint]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """When a network in training is looked at.

    Attributes:
        score: its validation score; None where nothing validates.
        every: steps between two scores.
        keep: which weights are kept at the end.
        patience: scores without a better one after which the training stops.
        curve: a point of the learning curve.
        curve_every: steps between two points; 0 for no curve.
    """

    score: Score | None = None
    every: int = 500
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    curve: Curve | None = None
    curve_every: int = 0


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

    def look_at(self, losses: list[tuple[int, Draw, float]]) -> None:
        """Take in the losses of the last iterations."""
        mean = float(torch.tensor([value for _, _, value in losses], dtype=torch.float64).mean())
        self.loss, self.diverged = (mean, False) if np.isfinite(mean) else (None, True)


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
    pool: ImageSource,
    config: Config,
    *,
    redraw: bool = False,
    runtime: Runtime,
    looks: Looks,
) -> Fitted:
    """Train a network.

    Args:
        network: see `build_network`; changed in place.
        pool: images of the imbalanced training set.
        config: of the training; each epoch of it is one step. `augment` holds for the rare classes alone.
        redraw: whether the sampler is made anew for each pass (of undersampling: another subset).
        runtime: device and precision.
        looks: when the network is looked at.
    """
    method = Method(config=config, index=pool.index, runtime=runtime, targets="images")
    draws = Draws(config, pool, network, redraw=redraw, runtime=runtime)
    source = TrainingImages(pool, perturb=_Perturber(config, pool))
    learner = method.make_learner(method.first(), network)
    steps = Steps(sampler=draws.make(), source=source, learner=learner, between=draws.between)
    return _train(network, steps, method, method.first(), looks)


def fit_second_phase(
    first: Fitted, pool: ImageSource, config: Config, *, runtime: Runtime, looks: Looks
) -> Fitted:
    """Go on from a finished network: its output layers alone, at the natural frequencies (Havaei et al. 2017;
    Buda et al. 2018).

    A whole second schedule at a tenth of the rate (`phases.lr_factor`), the plain cross-entropy. The phase is
    not stopped early and keeps its last weights: by validation images of other frequencies than the
    training's the first would be best.

    Where the images are not cut anew each time, what the output layer gets is computed once for each image:
    50 times faster for LeNet-5, and the same numbers but for the order of additions.
    """
    config = config.model_copy(update={"loss": Loss(), "sampler": NATURAL})
    method = Method(config=config, index=pool.index, runtime=runtime, targets="images")
    network = deepcopy(first.network).requires_grad_(False)
    layers = method.output_layers(network)
    for layer in layers:
        layer.requires_grad_(True)
    phase = method.begun_at(config.training.epochs + 1)
    draws = Draws(config, pool, network, redraw=False, runtime=runtime)
    fixed = _is_fixed(layers, pool)
    source = _Features(network, layers[0], pool, runtime=runtime) if fixed else TrainingImages(pool)
    learner = method.make_learner(phase, network, head=layers[0] if fixed else None)
    steps = Steps(sampler=draws.make(), source=source, learner=learner)
    return _train(network, steps, method, phase, replace(looks, keep="last", patience=None))


def _train(network: nn.Module, steps: Steps, method: Method, phase: Phase, looks: Looks) -> Fitted:
    """Take the steps of a phase; stop where the loss is no number or the score has not risen for long."""
    fitted, best, kept = Fitted(network, steps.n_drawn), Best(), None
    n_steps, n_looks = phase.last_epoch - phase.first_epoch + 1, 0
    network.eval()
    steps.learner.begin_epoch()
    for epoch in range(phase.first_epoch, phase.last_epoch + 1):
        if epoch == method.settled_from(phase):
            steps.learner.loss = method.loss_of(phase, epoch=epoch)
        steps.take(epoch - 1)
        fitted.iterations = done = epoch - phase.first_epoch + 1
        if len(steps.unchecked) == LOSSES_AT_ONCE:
            fitted.look_at(steps.losses())
            if fitted.diverged:
                break
        if looks.curve is not None and looks.curve_every and done % looks.curve_every == 0:
            fitted.curve.append({"iteration": done, **looks.curve(network)})
        if looks.score is not None and (done % looks.every == 0 or done == n_steps):
            n_looks += 1
            fitted.validation = looks.score(network)
            if best.see(n_looks, fitted.validation) and looks.keep == "best":
                kept = deepcopy(network.state_dict())
            if looks.patience is not None and n_looks - (best.at or 0) >= looks.patience:
                break
    if steps.unchecked:
        fitted.look_at(steps.losses())
    if kept is not None:
        network.load_state_dict(kept)
        fitted.validation, fitted.diverged = best.score, False
    fitted.diverged |= not all(torch.isfinite(weights).all() for weights in network.state_dict().values())
    if fitted.diverged:
        fitted.validation = None
    fitted.prior = method.prior_of(phase, fitted.seen, epoch=epoch)
    network.eval()
    return fitted


@torch.no_grad()
def probabilities(network: nn.Module, pool: ImageSource, *, runtime: Runtime) -> Float64[np.ndarray, "n k"]:
    """Class probabilities of every image of a pool, in its order; the network is in evaluation mode for it.

    The softmax is in float64: in float32 those of a sure network are exactly 1, and ties blur its ROC curve.
    Of an image that a diverging network gives no numbers for, all classes are alike.
    """
    with evaluating(network), runtime.autocast():
        logits = torch.cat([network(inputs).double() for inputs in pool.batches()])
    shares: Float64[np.ndarray, "n k"] = torch.softmax(logits, 1).cpu().numpy()
    shares[~np.isfinite(shares).all(axis=1)] = 1 / shares.shape[1]
    return shares


@dataclass
class Draws:
    """The samplers of one training: made anew for each pass where `redraw` says so, fed with hard examples
    where the config asks.
    """

    config: Config
    pool: ImageSource
    network: nn.Module
    redraw: bool
    runtime: Runtime
    n_made: int = 0

    def make(self) -> Sampler:
        """A sampler before its first step."""
        self.n_made += 1
        training, section = self.config.training, self.config.sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an absent class is the study's own wish
            return sampler_of(
                section,
                self.config.hard,
                self.pool.index,
                batch_size=training.batch_size,
                steps=None if section.kind in PASSES else training.epochs,
                seed=int(np.random.SeedSequence([training.seed, self.n_made]).generate_state(1)[0]),
                runtime=self.runtime,
            )

    def between(self, sampler: Sampler) -> Sampler:
        """The sampler of the next pass."""
        if self.redraw:
            return self.make()
        if isinstance(sampler, HardSampler):
            hard, index = self.config.hard, self.pool.index
            candidates = draw_candidates(
                index,
                classes=sampler.hard_classes,
                n_of_class=index.counts if hard.subset is None else np.full(index.n_classes, hard.subset),
                seed=self.config.training.seed,
                epoch=sampler.epoch,
            )
            sampler.accept_pools(hard_among(candidates, self._ask, threshold=hard.threshold))
        return sampler

    def _ask(self, ids: Ids) -> Float64[np.ndarray, "n k"]:
        return probabilities(self.network, self.pool.restrict(ids), runtime=self.runtime)


class TrainingImages:
    """Images as they are trained on."""

    def __init__(self, pool: ImageSource, *, perturb: "_Perturber | None" = None) -> None:
        self._pool, self._perturb = pool, perturb
        self._batch: Examples | None = None

    @property
    def index(self) -> ClassIndex:
        """The images by class."""
        return self._pool.index

    def batch(self, draw: Draw, *, number: int) -> Examples:
        """The images of a draw."""
        self._batch = self._pool.batch(draw.ids, number=number, out=self._batch)
        if self._perturb is not None:
            self._perturb(self._batch.inputs, draw, number=number)
        return self._batch


class _Features:
    """What the output layer is given for each image, computed once."""

    @torch.no_grad()
    def __init__(self, network: nn.Module, layer: nn.Module, pool: ImageSource, *, runtime: Runtime) -> None:
        """Run the network up to `layer`."""
        given: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].float()))
        with evaluating(network), runtime.autocast():
            for inputs in pool.batches():
                network(inputs)
        hook.remove()
        self._features, self._source, self.index = torch.cat(given), pool, pool.index

    def batch(self, draw: Draw, *, number: int) -> Examples:
        """Features and targets of a draw."""
        ids = torch.from_numpy(draw.ids).to(self._features.device)
        return Examples(self._features.index_select(0, ids), self._source.targets(draw.ids), None)


class _Perturber:
    """Changes the images of the rare classes of a batch, each time in another way."""

    def __init__(self, config: Config, pool: ImageSource) -> None:
        self._augment = Augmenter(config.augment, seed=config.training.seed, patch_size=pool.shape[1:3])
        self._is_rare = pool.index.counts < pool.index.counts.max()

    def __call__(self, inputs: Tensor, draw: Draw, *, number: int) -> None:
        rare = np.flatnonzero(self._is_rare[draw.classes])
        if rare.size and self._augment.is_on:
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


def _is_fixed(layers: Sequence[nn.Module], pool: ImageSource) -> bool:
    """Whether what the one output layer is given never changes in the second phase, and it is the last."""
    return pool.is_fixed and len(layers) == 1 and isinstance(layers[0], nn.Linear)
