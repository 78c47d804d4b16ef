"""One network on one imbalanced set: which images it is shown, and what is kept of its training."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn
from torch.nn import functional

from brats_seg.classification.image_set import ImageSet
from brats_seg.classification.settings import StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.config import Config
from brats_seg.core.errors import UsageError
from brats_seg.core.loss import Loss
from brats_seg.core.runtime import Runtime, StopRequest, evaluating
from brats_seg.core.sections import Hard
from brats_seg.core.shapes import Counts, Ids, Shares
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.sampler import Draw
from brats_seg.imbalance.samplers import HardSampler
from brats_seg.models.classic import make_classic, output_layers
from brats_seg.training.augment import Augmenter
from brats_seg.training.loop import Loop, Record, Scorer
from brats_seg.training.mining import draw_candidates, hard_among
from brats_seg.training.phases import NATURAL, Method
from brats_seg.training.steps import Examples, Losses, Training, alone

_NEVER = -1e4
"""Logit of a class that is never said."""
CurvePoint = dict[str, float]
Curve = Callable[[nn.Module], CurvePoint]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How a network in training is looked at; `validation` of the config says when it is scored.

    Attributes:
        score: its validation score; None where nothing validates.
        keep: which weights are kept at the end.
        curve: a point of the learning curve.
        curve_every: steps between two points; 0 for no curve.
    """

    score: Scorer | None = None
    keep: Literal["last", "best"] = "last"
    curve: Curve | None = None
    curve_every: int = 0


@dataclass(kw_only=True)
class Fitted(Record):
    """A trained network, and its training.

    Attributes:
        network: in evaluation mode.
        looks: how it was looked at.
        seen: images of each class that entered the loss.
        prior: what it was trained under (draws x weights); None after a loss that has none.
        iterations: done; fewer than the budget where it stopped early.
        loss: mean over the last iterations, 100 at most; None where it was not finite.
        validation: score on the validation images of the weights that were kept; None without such images, or
            where the loss or the weights stopped being numbers (`has_failed`).
        curve: points by iteration.
        vote: its weight in a committee.
    """

    network: nn.Module
    looks: Looks = Looks()
    losses_at_once: int = 100
    seen: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    prior: Shares | None = None
    iterations: int = 0
    loss: float | None = None
    validation: float | None = None
    curve: list[CurvePoint] = field(default_factory=list)
    vote: float = 1.0
    _kept: dict[str, Any] | None = field(default=None, init=False)

    def take_losses(self, losses: Losses) -> None:
        """Note the mean; a mean that is no number ends the training."""
        mean = float(torch.tensor([value for _, _, value in losses], dtype=torch.float64).mean())
        self.loss, self.has_failed = (mean, False) if np.isfinite(mean) else (None, True)

    def end_epoch(self, loop: Loop, epoch: int, scores: Mapping[str, float] | None) -> None:
        """Note a point of the curve and the score, and keep the best weights where they are asked for."""
        done, looks = epoch - loop.phase.first_epoch + 1, self.looks
        if looks.curve is not None and looks.curve_every and done % looks.curve_every == 0:
            self.curve.append({"iteration": done, **looks.curve(loop.steps.learner.evaluated())})
        if scores is not None:
            self.validation = scores["score"]
            if loop.best.at == epoch and looks.keep == "best":
                self._kept = deepcopy(self.network.state_dict())

    def training(self, loop: Loop) -> Training["Fitted"]:
        """Run the loop of one phase to its end, and take the weights that are asked for."""
        yield from loop.training(StopRequest())
        if loop.steps.unchecked:
            self.take_losses(loop.steps.losses())
        if self._kept is not None:
            self.network.load_state_dict(self._kept)
            self.validation, self.has_failed = loop.best.score, False
        loop.method.normalize(self.network)
        weights = self.network.state_dict().values()
        self.has_failed |= not all(torch.isfinite(values).all() for values in weights)
        if self.has_failed:
            self.validation = None
        self.iterations = loop.n_done - loop.phase.first_epoch + 1
        self.seen = loop.steps.n_drawn
        self.prior = loop.method.prior_of(loop.phase, self.seen, epoch=loop.n_done)
        self.network.eval()
        return self


def build_network(settings: StudySettings, images: ImageSet, *, seed: int, runtime: Runtime) -> nn.Module:
    """The study's network, freshly initialized from the seed, on the device.

    Raises:
        UsageError: `network.output_weights` "zero" where a ReLU follows the last layer: it would never learn.
    """
    n_channels, n_classes = images.n_channels, len(images.class_names)
    with torch.random.fork_rng(devices=[]):  # all GPUs by default, with a warning where there are several
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
    redraw: Literal["never", "epoch"] = "never",
    runtime: Runtime,
    looks: Looks,
) -> Fitted:
    """Train a network by itself; see `fitting`."""
    return alone(fitting(network, pool, config, redraw=redraw, runtime=runtime, looks=looks))


def fitting(
    network: nn.Module,
    pool: ImageSource,
    config: Config,
    *,
    redraw: Literal["never", "epoch"] = "never",
    runtime: Runtime,
    looks: Looks,
) -> Training[Fitted]:
    """Train a network, one step at a time.

    Args:
        network: see `build_network`; changed in place.
        pool: images of the imbalanced training set.
        config: of the training; each epoch of it is one step. `augment` holds for the rare classes alone.
        redraw: whether the sampler is made anew for each pass (of undersampling: another subset).
        runtime: device and precision.
        looks: how the network is looked at.
    """
    # A second phase is a training of its own: `fitting_second_phase`.
    config = config.model_copy(update={"phases": config.phases.model_copy(update={"two_phase": False})})
    method = Method(config=config, index=pool.index, runtime=runtime, targets="images", redraw=redraw)
    source = TrainingImages(pool, runtime=runtime, perturb=_Perturber(config, pool))
    record = Fitted(network=network, looks=looks)
    return record.training(
        Loop(
            method=method, phase=method.first(), network=network, source=source, record=record,
            scorer=looks.score,
        )
    )  # fmt: skip


def fitting_second_phase(
    first: Fitted, pool: ImageSource, config: Config, *, runtime: Runtime, looks: Looks
) -> Training[Fitted]:
    """Go on from a finished network, one step at a time: its output layers alone, at the natural frequencies
    (Havaei et al. 2017; Buda et al. 2018).

    A whole second schedule at a tenth of the rate (`phases.lr_factor`), the plain cross-entropy, unless
    `phases` names another sampler, loss or beginning of the output layer (Kang et al. 2020). The phase is
    not stopped early and keeps its last weights: by validation images of other frequencies than the
    training's the first would be best.

    Where the images are not cut anew each time, what the output layer gets is computed once for each image:
    50 times faster for LeNet-5, and the same numbers but for the order of additions.
    """
    patient = config.validation.model_copy(update={"patience": None})
    phases = config.phases.model_copy(update={"loss": config.phases.loss or Loss()})
    config = config.model_copy(update={"phases": phases, "sampler": NATURAL, "validation": patient})
    method = Method(config=config, index=pool.index, runtime=runtime, targets="images")
    network = deepcopy(first.network).requires_grad_(False)
    layers = method.output_layers(network)
    for layer in layers:
        layer.requires_grad_(True)
    head = layers[0] if _is_fixed(layers, pool) else None
    source = TrainingImages(pool, runtime=runtime)
    if head is not None:
        source = _Features(pool, runtime=runtime, network=network, layer=head)
    record = Fitted(network=network, looks=replace(looks, keep="last"))
    return record.training(
        Loop(
            method=method, phase=method.begun_at(config.training.epochs + 1), network=network, head=head,
            source=source, record=record, scorer=looks.score,
        )
    )  # fmt: skip


@torch.no_grad()
def take_class_means(first: Fitted, pool: ImageSource, config: Config, *, runtime: Runtime) -> Fitted:
    """A finished network whose output is how near an image lies to the mean of each class (NCM; Kang et al.
    2020, section 4).

    With m the mean of the features f of a class, the output layer f -> 2 m f - m^2 is minus the squared
    distance but for f^2, which all classes share. All is divided by the mean squared distance of an image to
    the mean of its own class. A class without images is never said.

    Raises:
        UsageError: the output layer of the network is no linear layer.
    """
    network = deepcopy(first.network)
    layer = output_layers(config.network.name, network)[-1]
    if not isinstance(layer, nn.Linear):
        raise UsageError(
            f"the nearest class mean needs a linear output layer; '{config.network.name}' has none, take "
            "lenet5, resnet10 or two_class"
        )
    features = _Features(pool, runtime=runtime, network=network, layer=layer).values
    labels = pool.targets(np.arange(len(pool))).long()
    is_there = torch.bincount(labels, minlength=layer.out_features) > 0
    means = torch.stack(
        [features[labels == k].mean(0) if found else torch.zeros_like(features[0])
         for k, found in enumerate(is_there.tolist())]
    )  # fmt: skip
    spread = (features - means[labels]).square().sum(1).mean().clamp(min=1e-12)
    layer.weight.copy_(2 * means / spread)
    layer.bias.copy_((-means.square().sum(1) / spread).masked_fill(~is_there, _NEVER))
    return replace(first, network=network.eval(), prior=None)


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


class TrainingImages:
    """Images as they are trained on."""

    def __init__(self, pool: ImageSource, *, runtime: Runtime, perturb: "_Perturber | None" = None) -> None:
        self._pool, self._runtime, self._perturb = pool, runtime, perturb
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

    def hard_pools(
        self, network: nn.Module, sampler: HardSampler, *, hard: Hard, seed: int
    ) -> Mapping[int, Ids]:
        """The hard ones of `hard.subset` random images of each class, or of all its images."""
        counts = self.index.counts
        candidates = draw_candidates(
            self.index,
            classes=sampler.hard_classes,
            n_of_class=counts if hard.subset is None else np.full_like(counts, hard.subset),
            seed=seed,
            epoch=sampler.epoch,
        )

        def ask(ids: Ids) -> Float64[np.ndarray, "n k"]:
            return probabilities(network, self._pool.restrict(ids), runtime=self._runtime)

        return hard_among(candidates, ask, threshold=hard.threshold)


class _Features(TrainingImages):
    """What the output layer is given for each image, computed once."""

    @torch.no_grad()
    def __init__(self, pool: ImageSource, *, runtime: Runtime, network: nn.Module, layer: nn.Module) -> None:
        """Run the network up to `layer`."""
        super().__init__(pool, runtime=runtime)
        given: list[Tensor] = []
        dtype = next(layer.parameters()).dtype
        hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].to(dtype)))
        with evaluating(network), runtime.autocast():
            for inputs in pool.batches():
                network(inputs)
        hook.remove()
        self.values = torch.cat(given)

    def batch(self, draw: Draw, *, number: int) -> Examples:
        """Features and targets of a draw."""
        ids = torch.from_numpy(draw.ids).to(self.values.device)
        return Examples(self.values.index_select(0, ids), self._pool.targets(draw.ids), None)


class _Perturber:
    """Changes the images of the rare classes of a batch, each time in another way."""

    def __init__(self, config: Config, pool: ImageSource) -> None:
        self._augment = Augmenter(config.augment, seed=config.training.seed, patch_size=pool.shape[1:3])
        self._is_rare = pool.index.counts < pool.index.counts.max()

    def __call__(self, inputs: Tensor, draw: Draw, *, number: int) -> None:
        rare = np.flatnonzero(self._is_rare[draw.classes])
        if rare.size and self._augment.is_on:
            rows = torch.from_numpy(rare).to(inputs.device)
            chosen = inputs.index_select(0, rows).float()
            nowhere = torch.zeros((len(rare), *inputs.shape[2:]), dtype=torch.uint8, device=inputs.device)
            parameters = self._augment.draw(epoch=number, positions=rare, n_modalities=inputs.shape[1])
            maps = self._augment.maps(parameters)
            moved = chosen if maps is None else _moved(chosen, maps.matrices[:, 1:, 1:])
            inputs[rows] = self._augment(moved, nowhere, parameters=parameters)[0].to(inputs.dtype)


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
