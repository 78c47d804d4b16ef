"""The sections of a training's config: every knob, its default and its limits, as frozen models."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from brats_seg.core.loss import Loss
from brats_seg.core.settings import Rules, Section, Share, unless


def refused_shares(kind: str, shares: Mapping[str, float] | None, healthy_share: float | None) -> str:
    """Why `sampler.shares` and `sampler.healthy_share` do not go together, or with the kind of the sampler;
    empty where they do.
    """
    if shares is not None and healthy_share is not None:
        return "shares and healthy_share: give one of the two"
    if kind == "ratio" and shares is None and healthy_share is None:
        return "kind 'ratio' needs shares (by class name) or healthy_share"
    total = 1 if shares is None else sum(shares.values())
    return "" if abs(total - 1) <= 1e-6 else f"shares sum to {total:g}; they must sum to 1"


MOST_PATCH_VOXELS = 1 << 26
"""The most voxels of a patch: 7 times a whole volume of BraTS. A config may come from a file of anybody."""


class Network(Section):
    """Which network, and its size. `deep_supervision` is the number of further outputs, each at half the
    resolution of the one before.
    """

    name: str = "unet2d"
    """Name of the network, such as unet2d or dynunet; docs/training.md lists them."""
    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Feature channels of each level, from the full resolution down."""
    num_res_units: Annotated[int, Field(ge=0)] = 2
    """Residual units in each block; 0 for plain blocks."""
    norm: Literal["batch", "instance", "group", "none"] = "batch"
    """What normalizes the features after each convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the features that are dropped at random in training."""
    deep_supervision: Annotated[int, Field(ge=0)] = 0
    """How many further outputs, each at half the resolution of the one before, are trained too."""
    stages: tuple["Network", "Network"] | None = None
    """The two networks of a composed 'cascade': healthy or tumor, then which tumor."""

    def _rules(self) -> Rules:
        return (
            (
                (self.name == "cascade") != (self.stages is not None),
                "network.stages belongs to 'cascade' alone, which `brats-seg cascade` composes of two "
                "trained runs",
            ),
        )


class Task(Section):
    """Which classes are told apart. The two stages of a cascade are runs of `healthy_or_tumor` and of `tumor`
    (healthy voxels left out).
    """

    classes: Literal["all", "healthy_or_tumor", "tumor"] = "all"
    """Which tissue classes are told apart."""


class Patch(Section):
    """Size of a patch in voxels: two numbers (Y, X) or three (Z, Y, X).

    `slices_around` n shows a 2-D network the n slices on either side of the patch as further channels
    (2.5-D).
    """

    size: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=2, max_length=3)] = (64, 64)
    """Voxels along each axis: two numbers (y, x) or three (z, y, x)."""
    slices_around: Annotated[int, Field(ge=0)] = 0
    """How many slices on either side a 2-D network sees beside the slice itself."""

    def _rules(self) -> Rules:
        return (
            (
                prod(self.size) > MOST_PATCH_VOXELS,
                f"size {list(self.size)}: a patch has at most {MOST_PATCH_VOXELS:,} voxels",
            ),
            (
                self.slices_around and len(self.size) == 3,
                f"slices_around {self.slices_around} goes with a patch of two axes; a patch of three axes "
                "has its slices",
            ),
        )


class Sampler(Section):
    """Which examples the network sees. Shares are by class name and sum to 1.

    A share of `tumor` goes in equal parts to the tumor classes that have none of their own. `drift` moves the
    shares in equal steps: "to_natural" from those asked for in the first epoch to the natural ones of the
    last, "from_natural" the other way. `power` p of kind 'balanced' makes the share of a class proportional
    to (its examples) ** p: 0 gives equal shares, 0.5 square-root sampling, 1 the natural shares.

    `first` says what is drawn first within a class. "voxel": every voxel of the class alike. "case": a case
    that has the class, then a voxel of it. "lesion": a connected tumor lesion that has the class, then a
    voxel of the class in it, so that a lesion of 20 voxels is seen as often as one of 20,000; of healthy
    tissue, which has no lesions, a case first.

    `jitter` is the middle share of the patch in which the drawn voxel lies, at a random place: 0 puts the
    voxel at the center of every patch, 1 puts the voxel anywhere in the patch.
    """

    kind: Literal["random", "balanced", "ratio", "hard", "oversample", "undersample"] = "balanced"
    """How the class of a drawn voxel is chosen."""
    first: Literal["voxel", "case", "lesion"] = "voxel"
    """What is drawn first within a class: any voxel, a case, or a lesion."""
    shares: dict[str, Share] | None = None
    """Share of the draws of each class, by name; `tumor` stands for all tumor classes in equal parts."""
    healthy_share: Share | None = None
    """Share of healthy draws; the tumor classes keep their natural proportion."""
    imbalance_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Largest over smallest class that over- and undersampling leave."""
    allow_absent_class: bool = False
    """Whether a class that no training case has is left out with a warning instead of refused."""
    drift: Literal["none", "to_natural", "from_natural"] = "none"
    """Whether the shares move to the natural ones over the epochs, or from them to those asked for."""
    power: Annotated[float, Field(ge=0, le=1), unless(0.0)] = 0.0
    """Of kind balanced: power of the class counts that the shares are proportional to; 0 for equal shares."""
    jitter: Share = 0.0
    """Middle share of the patch in which the drawn voxel lies; 0 is the center."""

    def _rules(self) -> Rules:
        refused = refused_shares(self.kind, self.shares, self.healthy_share)
        return (
            (refused, refused),
            (
                self.kind not in ("ratio", "hard")
                and (self.shares is not None or self.healthy_share is not None),
                f"kind '{self.kind}' takes no shares; use kind 'ratio' or 'hard'",
            ),
            (
                self.imbalance_ratio != 1 and self.kind not in ("oversample", "undersample"),
                f"kind '{self.kind}' has no imbalance_ratio; it goes with kind 'oversample' or 'undersample'",
            ),
            (
                self.power and self.kind != "balanced",
                f"kind '{self.kind}' has no power; power goes with kind 'balanced'",
            ),
            (
                self.drift != "none" and self.kind not in ("balanced", "ratio", "hard"),
                f"kind '{self.kind}' has no shares to move; drift goes with kind 'balanced', 'ratio' or "
                "'hard'",
            ),
        )


class Hard(Section):
    """Hard-example replay: used by sampler.kind 'hard' only. Among the classes `tumor` stands for all but
    healthy.

    `subset` is how many voxels of each class the network looks at after an epoch; None for as many as the
    class draws in an epoch. `recycle` starts a pool again when it is used up: a pool of a few voxels is then
    drawn hundreds of times.
    """

    threshold: Share = 0.75
    """Right answers with a probability below it count as hard too."""
    subset: Annotated[int, Field(gt=0)] | None = 20_000
    """How many voxels of each class the network looks at after an epoch; null for as many as are drawn."""
    recycle: bool = False
    """Whether a pool that is used up starts again."""
    classes: tuple[str, ...] | None = None
    """Classes that are mined; null for all."""
    max_age: Annotated[int, Field(ge=1)] = 1
    """Pools of how many epochs are joined."""


class Mix(Section):
    """Two examples of a batch mixed into one, in the first phase of a run.

    'mixup' (Zhang et al. 2018): x = s x1 + (1 - s) x2, and the loss is s of the loss for the first label and
    1 - s of that for the second, s from a Beta(alpha, alpha) distribution, one for a batch. 'remix' (Chou et
    al. 2020): the label alone leans to the rarer class. Where n1 / n2, the examples of the two classes, is
    `ratio` or more and s < `threshold`, the label is the second one; where n2 / n1 is `ratio` or more and
    1 - s < `threshold`, it is the first one. The class of a patch is the class of its drawn voxel.
    """

    kind: Literal["none", "mixup", "remix"] = "none"
    """Whether and how examples are mixed."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Of the Beta distribution of the shares; 1 for all shares alike, less for shares near 0 and 1."""
    ratio: Annotated[float, Field(ge=1)] = 3.0
    """Of remix: how many times rarer a class is that takes the whole label."""
    threshold: Share = 0.5
    """Of remix: the other example's share below which the rarer class takes the whole label."""


class Optimizer(Section):
    """The optimizer and its learning rate over the run.

    `decay` says which weights decay: kernels alone, or norm scales and biases too. Schedule `linear` falls to
    0, `inverse` is Caffe's lr (1 + gamma step)^-power, `steps` multiplies by `drop_factor` at each of `drops`
    (shares of the run). The biases of convolutions and linear layers learn at `bias_lr_factor` times the
    rate.
    """

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    """Which optimizer."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate at its highest."""
    bias_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the rate of the biases of convolutions and linear layers."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Strength of the weight decay."""
    decay: Literal["kernels", "everything"] = "kernels"
    """Which weights decay."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Whether sgd uses Nesterov's momentum."""
    schedule: Literal["constant", "poly", "cosine", "linear", "inverse", "steps"] = "poly"
    """How the rate falls over the run."""
    gamma: Annotated[float, Field(ge=0)] = 1e-4
    """Of schedule inverse: how fast the rate falls."""
    power: Annotated[float, Field(ge=0)] = 0.75
    """Exponent of schedule inverse."""
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Of schedule steps: shares of the run at which the rate drops."""
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of schedule steps: factor on the rate at each drop."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the rate rises to its highest."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null for no limit."""

    def _rules(self) -> Rules:
        return (
            (
                self.schedule == "steps" and not self.drops,
                "schedule 'steps' never drops without optimizer.drops, shares of the run such as [0.5, 0.75]",
            ),
        )


class Training(Section):
    """The budget: epochs x steps x batch_size patches.

    `accumulate` cuts a batch into so many parts that go through the network one after the other, for less
    memory. `initial` is the SHA-256 of the checkpoint whose weights the training begins with: `train --from`
    writes it, and nobody else. `norm_statistics` "measured" shows the whole training scans to the trained
    network once more and takes the statistics of its batch norms from them. `compile` and `cudnn_benchmark`
    decide how fast a run is and not what it learns: at their defaults they do not stand in its `config.yaml`.
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
    """Parts in which a batch goes through the network, for less memory."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the past in the running mean of the weights; 0 for none."""
    precision: Literal["auto", "float32", "tf32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of the processor; 0 for the number that torch chooses."""
    compile: Annotated[
        Literal["never", "always", "graphs"], Field(exclude_if=lambda value: value == "never")
    ] = "never"
    """Whether torch.compile makes code for the network: minutes at the start, 4 to 7 % faster on a CPU. With
    graphs a GPU also repeats the recorded passes as CUDA graphs, which helps small networks.
    """
    cudnn_benchmark: Annotated[
        Literal["auto", "never", "always"], Field(exclude_if=lambda value: value == "auto")
    ] = "auto"
    """Whether cuDNN tries its algorithms at the first pass; auto does so on a GPU."""
    norm_statistics: Literal["running", "measured"] = "running"
    """Where the statistics of batch norms come from."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Longest time between two checkpoints, in minutes."""
    checkpoint_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs between two checkpoints."""
    tensorboard: bool = False
    """Whether curves are written for TensorBoard too."""
    initial: str = ""
    """SHA-256 of the checkpoint that the training begins with; written by `train --from`."""


class Phases(Section):
    """Two-phase training (Havaei et al. 2017): after the run as the other sections have it, a second phase at
    the natural frequencies.

    In it the output layer alone learns, without class weights, `epochs` long (None: as long as the first), on
    a whole schedule again at `lr_factor` times the rate. `sampler` and `loss` are those of the second phase.
    `output` says how the output layer learns: on from its weights, from new random ones (cRT; Kang et al.
    2020), or the length of the weights of each class alone, in their direction (LWS; Kang et al. 2020).
    `normalize` needs no second phase: at the end of the run the output weights of each class are divided by
    their length to this power, and the biases become 0 (tau-normalization; Kang et al. 2020).
    """

    two_phase: bool = False
    """Whether a second phase follows."""
    epochs: Annotated[int, Field(gt=0)] | None = None
    """Epochs of the second phase; null for as many as the first."""
    lr_factor: Annotated[float, Field(gt=0)] = 0.1
    """Factor on the rate in the second phase."""
    sampler: Annotated[Sampler | None, unless(None)] = None
    """Sampler of the second phase; null for the natural frequencies."""
    loss: Annotated[Loss | None, unless(None)] = None
    """Loss of the second phase; null for that of the first without class weights."""
    output: Annotated[Literal["kept", "anew", "scaled"], unless("kept")] = "kept"
    """How the output layer learns in the second phase: on, anew, or its lengths alone."""
    normalize: Annotated[Share, unless(0.0)] = 0.0
    """Power of the length that the output weights of each class are divided by at the end; 0 for none."""

    def _rules(self) -> Rules:
        given = {"sampler": self.sampler, "loss": self.loss, "output": self.output != "kept"}
        return (
            *(
                (
                    value and not self.two_phase,
                    f"{name} is of the second phase; it goes with two_phase: true",
                )
                for name, value in given.items()
            ),
            (
                self.normalize and self.two_phase,
                "normalize changes the output layer, which the second phase trains; give one",
            ),
            (
                self.loss is not None and (self.loss.kind == "region" or self.loss.class_weights != "none"),
                "the loss of the second phase has no class weights, and is none of kind 'region'",
            ),
        )


class Validation(Section):
    """The inner split of the training patients that picks the best checkpoint.

    `cases` says which cases are the inner split. "fraction": a random `fraction` of the training patients.
    "next_fold": the fold after the held-out one, so that the inner splits of all folds hold each case once.
    "none": no case, so that all cases of the other folds are trained on. Metric "mean_dice" is the mean of
    the three regions'; the others are `of` a named region or tissue class (the F-score of a region is its
    Dice). "last" scores the epochs and takes the newest all the same: with one or two inner patients a choice
    would follow their oddities.
    """

    cases: Literal["fraction", "next_fold", "none"] = "fraction"
    """Which cases are the inner split."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training patients in the inner split."""
    every: Annotated[int, Field(gt=0)] = 1
    """Epochs between two looks at the inner split."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Looks without a better score before the training stops; null for never."""
    metric: Literal["mean_dice", "sensitivity", "f_score", "sensitivity_and_f_score", "iou", "last"] = (
        "mean_dice"
    )
    """The score that picks the best checkpoint; last keeps the newest."""
    of: str | None = None
    """The region or tissue class that is scored."""

    def _rules(self) -> Rules:
        return (
            (
                self.fraction != 0.2 and self.cases != "fraction",
                f"cases '{self.cases}' takes no fraction; fraction goes with cases 'fraction'",
            ),
            (
                self.cases == "none" and self.metric != "last",
                f"cases 'none' leaves no case for metric '{self.metric}'; it goes with metric 'last'",
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
