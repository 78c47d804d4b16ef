"""The sections of a training config as frozen models: every knob, its default and its limits."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from brats_seg.core.loss import Loss
from brats_seg.core.settings import Rules, Section, Share, unless


def refused_shares(kind: str, shares: Mapping[str, float] | None, healthy_share: float | None) -> str:
    """The reason why `sampler.shares` and `sampler.healthy_share` do not fit each other or the kind of the
    sampler; "" if they fit.
    """
    if shares is not None and healthy_share is not None:
        return "shares and healthy_share: give one of the two"
    if kind == "ratio" and shares is None and healthy_share is None:
        return "kind 'ratio' needs shares (by class name) or healthy_share"
    total = 1 if shares is None else sum(shares.values())
    return "" if abs(total - 1) <= 1e-6 else f"shares sum to {total:g}; they must sum to 1"


MOST_PATCH_VOXELS = 1 << 26
"""Largest number of voxels of a patch: 7 times a whole volume of BraTS. The limit exists because a config may
come from an unknown file.
"""


class Network(Section):
    """The network and its size. `deep_supervision` is the number of additional outputs, each at half the
    resolution of the output before.
    """

    name: str = "unet2d"
    """Name of the network, such as unet2d or dynunet; docs/training.md lists them."""
    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Feature channels of each level, from the full resolution down."""
    num_res_units: Annotated[int, Field(ge=0)] = 2
    """Residual units in each block; 0 for plain blocks."""
    norm: Literal["batch", "instance", "group", "none"] = "batch"
    """Normalization of the features after each convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the features that are dropped at random in training."""
    deep_supervision: Annotated[int, Field(ge=0)] = 0
    """Number of additional outputs in training, each at half the resolution of the output before."""
    stages: tuple["Network", "Network"] | None = None
    """The two networks of a composed 'cascade': first healthy or tumor, then the tumor classes."""

    def _rules(self) -> Rules:
        return (
            (
                (self.name == "cascade") != (self.stages is not None),
                "network.stages is only for 'cascade', which `brats-seg cascade` builds from two "
                "trained runs",
            ),
        )


class Task(Section):
    """The classes that the network distinguishes. The two stages of a cascade are runs with
    `healthy_or_tumor` and with `tumor` (without healthy voxels).
    """

    classes: Literal["all", "healthy_or_tumor", "tumor"] = "all"
    """The tissue classes that the network distinguishes."""


class Patch(Section):
    """Size of a patch in voxels: two numbers (Y, X) or three (Z, Y, X).

    With `slices_around` n, a 2-D network gets the n slices on each side of the patch as additional channels
    (2.5-D).
    """

    size: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=2, max_length=3)] = (64, 64)
    """Voxels along each axis: two numbers (y, x) or three (z, y, x)."""
    slices_around: Annotated[int, Field(ge=0)] = 0
    """Number of slices on each side that a 2-D network gets in addition to the slice of the patch."""

    def _rules(self) -> Rules:
        return (
            (
                prod(self.size) > MOST_PATCH_VOXELS,
                f"size {list(self.size)}: a patch has at most {MOST_PATCH_VOXELS:,} voxels",
            ),
            (
                self.slices_around and len(self.size) == 3,
                f"slices_around {self.slices_around} is only for a patch of two axes; a patch of three axes "
                "already has its slices",
            ),
        )


class Sampler(Section):
    """The examples that the network is trained on. Shares are given by class name and sum to 1.

    A share of `tumor` is divided equally among the tumor classes without an own share. `drift` changes the
    shares in equal steps: "to_natural" from the given shares in the first epoch to the natural shares in the
    last epoch, "from_natural" in the other direction. `power` p of kind 'balanced' makes the share of a class
    proportional to (its examples) ** p: 0 gives equal shares, 0.5 square-root sampling, 1 the natural shares.

    `first` determines what is drawn first within a class. "voxel": every voxel of the class has the same
    probability. "case": first a case with the class, then a voxel of the class in this case. "lesion": first
    a connected tumor lesion with the class, then a voxel of the class in this lesion. A lesion of 20 voxels
    is then drawn as often as a lesion of 20,000 voxels. Healthy tissue has no lesions, so a case is drawn
    first.

    `jitter` is the share of the patch, around its middle, in which the drawn voxel lies at random: 0 puts the
    voxel at the center of every patch, 1 puts it anywhere in the patch.
    """

    kind: Literal["random", "balanced", "ratio", "hard", "oversample", "undersample"] = "balanced"
    """How the class of a drawn voxel is chosen."""
    first: Literal["voxel", "case", "lesion"] = "voxel"
    """What is drawn first within a class: any voxel, a case, or a lesion."""
    shares: dict[str, Share] | None = None
    """Share of the draws of each class, by name; `tumor` means all tumor classes in equal parts."""
    healthy_share: Share | None = None
    """Share of healthy draws; the tumor classes keep their natural proportion."""
    imbalance_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Size of the largest class divided by the smallest class after over- or undersampling."""
    allow_absent_class: bool = False
    """Whether a class that no training case has is left out with a warning instead of an error."""
    drift: Literal["none", "to_natural", "from_natural"] = "none"
    """Whether the shares change over the epochs to the natural shares, or from the natural shares to the
    given shares.
    """
    power: Annotated[float, Field(ge=0, le=1), unless(0.0)] = 0.0
    """For kind balanced: the shares are proportional to the class counts to this power; 0 for equal
    shares.
    """
    jitter: Share = 0.0
    """Middle share of the patch in which the drawn voxel lies; 0 is the center."""

    def _rules(self) -> Rules:
        refused = refused_shares(self.kind, self.shares, self.healthy_share)
        return (
            (refused, refused),
            (
                self.kind not in ("ratio", "hard")
                and (self.shares is not None or self.healthy_share is not None),
                f"kind '{self.kind}' does not use shares; use kind 'ratio' or 'hard'",
            ),
            (
                self.imbalance_ratio != 1 and self.kind not in ("oversample", "undersample"),
                f"kind '{self.kind}' has no imbalance_ratio; use kind 'oversample' or 'undersample'",
            ),
            (
                self.power and self.kind != "balanced",
                f"kind '{self.kind}' has no power; only kind 'balanced' has it",
            ),
            (
                self.drift != "none" and self.kind not in ("balanced", "ratio", "hard"),
                f"kind '{self.kind}' has no shares that can change; drift is only for kind 'balanced', "
                "'ratio' or 'hard'",
            ),
        )


class Hard(Section):
    """Hard-example replay, used only by sampler.kind 'hard'. In `classes`, `tumor` means all classes except
    healthy.

    `subset` is the number of voxels of each class that the network classifies after an epoch; None for the
    number of draws of the class in an epoch. `recycle` starts a pool again when it is used up, so a pool of a
    few voxels is drawn hundreds of times.
    """

    threshold: Share = 0.75
    """Correct predictions with a probability below this threshold count as hard too."""
    subset: Annotated[int, Field(gt=0)] | None = 20_000
    """Number of voxels of each class that the network classifies after an epoch; null for the number of
    draws.
    """
    recycle: bool = False
    """Whether a used-up pool starts again."""
    classes: tuple[str, ...] | None = None
    """Classes whose hard examples are searched for; null for all."""
    max_age: Annotated[int, Field(ge=1)] = 1
    """Number of epochs whose pools are joined."""


class Mix(Section):
    """Two examples of a batch mixed into one, in the first phase of a run.

    'mixup' (Zhang et al. 2018): x = s x1 + (1 - s) x2, and the loss is s times the loss for the first label
    plus 1 - s times the loss for the second label. s comes from a Beta(alpha, alpha) distribution, once for
    each batch. 'remix' (Chou et al. 2020): only the label is moved to the rarer class. n1 and n2 are the
    numbers of examples of the two classes. If n1 / n2 is `ratio` or more and s < `threshold`, the label is
    the second one. If n2 / n1 is `ratio` or more and 1 - s < `threshold`, the label is the first one. The
    class of a patch is the class of its drawn voxel.
    """

    kind: Literal["none", "mixup", "remix"] = "none"
    """Whether and how examples are mixed."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Parameter of the Beta distribution of the shares; 1 for uniform shares, smaller values for shares near
    0 and 1.
    """
    ratio: Annotated[float, Field(ge=1)] = 3.0
    """For remix: how many times rarer a class must be to get the whole label."""
    threshold: Share = 0.5
    """For remix: share of the other example below which the rarer class gets the whole label."""


class Optimizer(Section):
    """The optimizer and its learning rate over the run.

    `decay` determines which weights decay: only kernels, or also norm scales and biases. Schedule `linear`
    decreases to 0, `inverse` is Caffe's lr (1 + gamma step)^-power, `steps` multiplies by `drop_factor` at
    each of `drops` (shares of the run). The biases of convolutions and linear layers have `bias_lr_factor`
    times the learning rate.
    """

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    """Which optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate."""
    bias_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the learning rate of the biases of convolutions and linear layers."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Strength of the weight decay."""
    decay: Literal["kernels", "everything"] = "kernels"
    """Which weights decay."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Whether sgd uses Nesterov's momentum."""
    schedule: Literal["constant", "poly", "cosine", "linear", "inverse", "steps"] = "poly"
    """How the learning rate decreases over the run."""
    gamma: Annotated[float, Field(ge=0)] = 1e-4
    """For schedule inverse: how fast the learning rate decreases."""
    power: Annotated[float, Field(ge=0)] = 0.75
    """Exponent of schedule inverse."""
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """For schedule steps: shares of the run at which the learning rate drops."""
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """For schedule steps: factor on the learning rate at each drop."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Number of steps in which the learning rate rises to its highest value."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null for no limit."""

    def _rules(self) -> Rules:
        return (
            (
                self.schedule == "steps" and not self.drops,
                "schedule 'steps' needs optimizer.drops: shares of the run, such as [0.5, 0.75]",
            ),
        )


class Training(Section):
    """The budget: epochs x steps x batch_size patches.

    `accumulate` is the number of parts of a batch that are processed one after the other, which needs less
    memory. `initial` is the SHA-256 of the checkpoint with the initial weights; only `train --from` writes
    it. `norm_statistics` "measured" runs the trained network once on the whole training scans and computes
    the statistics of its batch norms from them. `compile` and `cudnn_benchmark` change the speed of a run but
    not its results; with their default values they are not in its `config.yaml`.
    """

    epochs: Annotated[int, Field(gt=0)] = 50
    """How many epochs."""
    steps: Annotated[int, Field(gt=0)] = 1000
    """Batches in an epoch."""
    batch_size: Annotated[int, Field(gt=0)] = 120
    """Patches in a batch."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all random numbers of the run."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Number of parts of a batch that are processed one after the other, for less memory."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running mean of the weights; 0 for no running mean."""
    precision: Literal["auto", "float32", "tf32", "bf16", "fp16"] = "auto"
    """Number format of the network's computations."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Number of CPU threads; 0 for the number that torch chooses."""
    compile: Annotated[
        Literal["never", "always", "graphs"], Field(exclude_if=lambda value: value == "never")
    ] = "never"
    """Whether torch.compile compiles the network. This takes minutes at the start and is 4 to 7 % faster on a
    CPU. With graphs a GPU also replays the passes as CUDA graphs, which helps small networks.
    """
    cudnn_benchmark: Annotated[
        Literal["auto", "never", "always"], Field(exclude_if=lambda value: value == "auto")
    ] = "auto"
    """Whether cuDNN tests its algorithms in the first pass; auto does this on a GPU."""
    norm_statistics: Literal["running", "measured"] = "running"
    """Source of the statistics of batch norms."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Longest time between two checkpoints, in minutes."""
    checkpoint_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs between two checkpoints."""
    tensorboard: bool = False
    """Whether curves are written for TensorBoard too."""
    initial: str = ""
    """SHA-256 of the checkpoint with the initial weights; written by `train --from`."""


class Phases(Section):
    """Two-phase training (Havaei et al. 2017): after the run with the other sections, a second phase with the
    natural class frequencies.

    The second phase trains only the output layer, without class weights, for `epochs` epochs (None: as many
    as the first phase), with a complete schedule at `lr_factor` times the learning rate. `sampler` and `loss`
    are the sampler and the loss of the second phase. `output` determines how the output layer is trained:
    from its weights, from new random weights (cRT; Kang et al. 2020), or only the length of the weights of
    each class (LWS; Kang et al. 2020). `normalize` needs no second phase: at the end of the run the output
    weights of each class are divided by their length to this power, and the biases become 0
    (tau-normalization; Kang et al. 2020).
    """

    two_phase: bool = False
    """Whether a second phase follows."""
    epochs: Annotated[int, Field(gt=0)] | None = None
    """Epochs of the second phase; null for as many as the first."""
    lr_factor: Annotated[float, Field(gt=0)] = 0.1
    """Factor on the learning rate in the second phase."""
    sampler: Annotated[Sampler | None, unless(None)] = None
    """Sampler of the second phase; null for the natural frequencies."""
    loss: Annotated[Loss | None, unless(None)] = None
    """Loss of the second phase; null for the loss of the first phase without class weights."""
    output: Annotated[Literal["kept", "anew", "scaled"], unless("kept")] = "kept"
    """What the second phase trains: the output weights, new random ones, or only their lengths."""
    normalize: Annotated[Share, unless(0.0)] = 0.0
    """Power of the length that divides the output weights of each class at the end; 0 for no division."""

    def _rules(self) -> Rules:
        given = {"sampler": self.sampler, "loss": self.loss, "output": self.output != "kept"}
        return (
            *(
                (
                    value and not self.two_phase,
                    f"{name} is only for the second phase; it needs two_phase: true",
                )
                for name, value in given.items()
            ),
            (
                self.normalize and self.two_phase,
                "normalize changes the output layer, which the second phase trains; give only one of them",
            ),
            (
                self.loss is not None and (self.loss.kind == "region" or self.loss.class_weights != "none"),
                "the loss of the second phase must not have class weights or kind 'region'",
            ),
        )


class Validation(Section):
    """The inner cases of the training patients, which choose the best checkpoint.

    `cases` determines the inner cases. "fraction": a random `fraction` of the training patients. "next_fold":
    the fold after the held-out fold, so that the inner cases of all folds contain each case once. "none": no
    inner cases, so that all cases of the other folds are training cases. Metric "mean_dice" is the mean Dice
    of the three regions. The other metrics are for the region or tissue class `of` (the F-score of a region
    is its Dice). "last" scores the epochs but keeps the newest weights: with one or two inner patients a
    choice would depend on their peculiarities.
    """

    cases: Literal["fraction", "next_fold", "none"] = "fraction"
    """Which cases are the inner cases."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training patients that are inner cases."""
    every: Annotated[int, Field(gt=0)] = 1
    """Number of epochs between two validations on the inner cases."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Number of validations without a better score before the training stops; null for no early stopping."""
    metric: Literal["mean_dice", "sensitivity", "f_score", "sensitivity_and_f_score", "iou", "last"] = (
        "mean_dice"
    )
    """The score that chooses the best checkpoint; last keeps the newest."""
    of: str | None = None
    """The region or tissue class that is scored."""

    def _rules(self) -> Rules:
        return (
            (
                self.fraction != 0.2 and self.cases != "fraction",
                f"cases '{self.cases}' does not use fraction; only cases 'fraction' uses it",
            ),
            (
                self.cases == "none" and self.metric != "last",
                f"cases 'none' leaves no case for metric '{self.metric}'; use metric 'last'",
            ),
            (
                self.patience is not None and self.metric == "last",
                "patience waits for a score to rise; metric 'last' has none: choose another metric or no "
                "patience",
            ),
            (
                (self.of is None) != (self.metric in ("mean_dice", "last")),
                f"metric '{self.metric}' goes {'with' if self.of is None else 'without'} validation.of, a "
                "region or tissue class",
            ),
        )
