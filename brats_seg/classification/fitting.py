"""Train one network on one imbalanced set, and record its training."""

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
"""Logit of a class that is never predicted."""
CurvePoint = dict[str, float]
Curve = Callable[[nn.Module], CurvePoint]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """The scores and curves of a network in training. `validation` of the config determines when it is
    scored.

    Attributes:
        score: function for the validation score; None without validation.
        keep: which weights are kept at the end.
        curve: function for a point of the learning curve.
        curve_every: number of steps between two points; 0 for no curve.
    """

    score: Scorer | None = None
    keep: Literal["last", "best"] = "last"
    curve: Curve | None = None
    curve_every: int = 0


@dataclass(kw_only=True)
class Fitted(Record):
    """A trained network and the record of its training.

    Attributes:
        network: the network, in evaluation mode.
        looks: its scores and curves in training.
        seen: number of images of each class in the loss.
        prior: the training prior (draws x weights); None for a loss without a prior.
        iterations: number of iterations; below the budget after early stopping.
        loss: mean over the last 100 iterations at most; None if the loss was not finite.
        validation: score of the kept weights on the validation images; None without validation images, or if
            the loss or the weights became NaN or infinite (`has_failed`).
        curve: points of the learning curve by iteration.
        vote: weight of the network in a committee.
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
        """Record the mean loss. A mean that is not finite ends the training."""
        mean = float(torch.tensor([value for _, _, value in losses], dtype=torch.float64).mean())
        self.loss, self.has_failed = (mean, False) if np.isfinite(mean) else (None, True)

    def end_epoch(self, loop: Loop, epoch: int, scores: Mapping[str, float] | None) -> None:
        """Record a point of the curve and the score. Keep the best weights if the settings ask for this."""
        done, looks = epoch - loop.phase.first_epoch + 1, self.looks
        if looks.curve is not None and looks.curve_every and done % looks.curve_every == 0:
            self.curve.append({"iteration": done, **looks.curve(loop.steps.learner.evaluated())})
        if scores is not None:
            self.validation = scores["score"]
            if loop.best.at == epoch and looks.keep == "best":
                self._kept = deepcopy(self.network.state_dict())

    def training(self, loop: Loop) -> Training["Fitted"]:
        """Run the loop of one phase to its end, and load the weights to keep."""
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
    """The network of the study, initialized from the seed, on the device.

    Raises:
        UsageError: `network.output_weights` is "zero" and a ReLU follows the last layer. Such a layer would
            never learn.
    """
    n_channels, n_classes = images.n_channels, len(images.class_names)
    with torch.random.fork_rng(devices=[]):  # by default all GPUs, with a warning if there are several
        torch.manual_seed(seed)
        network = make_classic(
            settings.network.name, n_channels=n_channels, n_classes=n_classes, image_size=images.image_size
        )
    if settings.network.output_weights == "zero":
        last = output_layers(settings.network.name, network)[-1]
        if not isinstance(last, nn.Linear):
            raise UsageError(
                f"network.output_weights 'zero': the last layer of '{settings.network.name}' is followed "
                "by a ReLU; use 'scaled'"
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
    """Train one network; see `fitting`."""
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
    """Train a network, as a generator of single steps.

    Args:
        network: see `build_network`; changed in place.
        pool: images of the imbalanced training set.
        config: config of the training; each of its epochs is one step. `augment` is used only for the rare
            classes.
        redraw: whether each pass has a new sampler (undersampling then draws another subset).
        runtime: device and precision.
        looks: scores and curves of the network.
    """
    # The second phase is a separate training: `fitting_second_phase`.
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
    """Train only the output layers of a finished network, at the natural class frequencies, as a generator of
    single steps (Havaei et al. 2017; Buda et al. 2018).

    The phase has a complete second schedule at a tenth of the learning rate (`phases.lr_factor`) and the
    plain cross-entropy, unless `phases` names another sampler, loss or initial output layer (Kang et al.
    2020). The phase is not stopped early and keeps its last weights. If the validation images have other
    class frequencies than the training images, the first weights would always seem best.

    If the crop of an image is the same each time, the input of the output layer is computed once for each
    image. This is 50 times faster for LeNet-5. The results differ only by the order of additions.
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
    """A finished network that predicts the class with the nearest mean of the features (NCM; Kang et al.
    2020, section 4).

    With m the mean of the features f of a class, the output layer computes f -> 2 m f - m^2. This is the
    negative squared distance plus f^2, which is the same for all classes. The outputs are divided by the mean
    squared distance of an image to the mean of its own class. A class without images is never predicted.

    Raises:
        UsageError: the output layer of the network is not a linear layer.
    """
    network = deepcopy(first.network)
    layer = output_layers(config.network.name, network)[-1]
    if not isinstance(layer, nn.Linear):
        raise UsageError(
            f"the nearest class mean needs a linear output layer; '{config.network.name}' has none; use "
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
    """Class probabilities of every image of a pool, in the order of the pool, with the network in evaluation
    mode.

    The softmax is computed in float64. In float32 many probabilities of a confident network would be exactly
    1, and these ties would change its ROC curve. If the outputs for an image are not numbers because the
    network diverged, all classes get the same probability.
    """
    with evaluating(network), runtime.autocast():
        logits = torch.cat([network(inputs).double() for inputs in pool.batches()])
    shares: Float64[np.ndarray, "n k"] = torch.softmax(logits, 1).cpu().numpy()
    shares[~np.isfinite(shares).all(axis=1)] = 1 / shares.shape[1]
    return shares


class TrainingImages:
    """The training images as a data source."""

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
        """The hard images among `hard.subset` random images of each class, or among all its images."""
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
    """The input of the output layer for each image, computed once."""

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
    """Changes the images of the rare classes of a batch, each time with new random parameters."""

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
    """Images (B, C, Y, X) rotated and scaled about their middle, with linear interpolation and 0 outside the
    image.

    A bank reads a rotated patch from the volume around the patch. An image has no values outside.
    """
    height, width = images.shape[2:]
    # `affine_grid` has x before y, and each axis ranges from -1 to 1 for every length.
    stretch = np.array([[1, height / width], [width / height, 1]], np.float32)
    maps = torch.from_numpy(np.pad(matrices[:, ::-1, ::-1] * stretch, ((0, 0), (0, 0), (0, 1)))).to(images)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _is_fixed(layers: Sequence[nn.Module], pool: ImageSource) -> bool:
    """Whether there is one output layer, it is the last layer, and its input never changes in the second
    phase.
    """
    return pool.is_fixed and len(layers) == 1 and isinstance(layers[0], nn.Linear)
