"""The settings of each kind of study."""

from typing import Annotated, Literal

from pydantic import Field

from brats_seg.core.augmentation import Augment
from brats_seg.core.sections import Hard, Optimizer
from brats_seg.core.settings import Rules, Section
from brats_seg.imbalance.distributions import Kind, Minority

Rho = Annotated[float, Field(ge=1)]
Mu = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(gt=0)]


class Images(Section):
    """The image set of a study.

    `folder` None means the folder with the name of the set under BRATS_SEG_DATA. `preprocessing` is for
    CIFAR-10: global contrast normalization and ZCA whitening, fitted on the training images. `classes` keeps
    only these classes, in the given order.
    """

    name: Literal["mnist", "cifar10", "cifar100", "imagenet_lt", "omniglot", "folder", "npz"] = "mnist"
    folder: str | None = None
    preprocessing: Literal["none", "gcn_zca"] = "none"
    classes: tuple[str, ...] | None = None


class Distribution(Section):
    """Imbalanced training sets: one for each `rho`, `mu` and repeat.

    `minority` determines which classes are rare: random classes in each repeat, the first classes, or the
    last classes. `methods` keeps only some methods of the study. `repeats` None uses the number of the study.
    """

    kind: Kind = "step"
    rho: tuple[Rho, ...] = (1.0,)
    mu: tuple[Mu, ...] = ()
    counts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    minority: Minority = "random"
    repeats: Count | None = None
    methods: tuple[str, ...] | None = None

    def _rules(self) -> Rules:
        return (
            (
                (self.kind == "step") != bool(self.mu),
                "mu, the share of rare classes, is only for kind 'step'",
            ),
            (
                (self.kind == "given") != (self.counts is not None),
                "counts, the images of each class, are needed for kind 'given' and only for this kind",
            ),
        )


class Knobs(Section):
    """The knobs of a remedy. Each remedy uses the knobs that it needs.

    Attributes:
        kind: a name in `methods.METHODS`; None uses the name of the method in the study.
        imbalance_ratio: for over- and undersampling: size of the largest class divided by the smallest class
            after resampling. Each of several values gives a separate network.
        redraw: for undersampling: one fixed subset, or a new subset in each epoch.
        two_phase: train only the output layer of the finished network again, at the natural class
            frequencies.
        tau: factor of logit adjustment.
        weights_from: for deferred re-weighting: share of the iterations before the weights are used.
        augment: for perturbed copies: changes of an image of a rare class.
        hard: for hard-example replay: the threshold, whether a pool starts again, and the age of a pool.
            Without it, all images of a class are tested, and a used-up pool starts again, as in the stored
            studies.
        networks: number of networks of EasyEnsemble and BalanceCascade.
        neighbors: number of neighbors in the methods of imbalanced-learn.
    """

    kind: str | None = None
    imbalance_ratio: Annotated[tuple[Rho, ...], Field(min_length=1)] = (1.0,)
    redraw: Literal["never", "epoch"] = "never"
    two_phase: bool = False
    tau: Annotated[float, Field(gt=0)] = 1.0
    weights_from: Annotated[float, Field(ge=0, lt=1)] = 0.8
    augment: Augment = Augment(
        flip=0.0, rotate_degrees=10.0, scale=(0.9, 1.1), affine_probability=1.0, noise_sd=(0.0, 0.05)
    )
    hard: Hard = Hard(subset=None, recycle=True)
    networks: Annotated[int, Field(ge=2)] = 4
    neighbors: Annotated[int, Field(ge=1)] = 5


class Network(Section):
    """The network of a study. `precision` bf16 is faster, but differs from the published arithmetic.

    `output_weights` are the initial weights of the last layer: "scaled" as in the other layers, or "zero".
    """

    name: str = "lenet5"
    output_weights: Literal["scaled", "zero"] = "scaled"
    precision: Literal["float32", "bf16"] = "float32"


class Training(Section):
    """The training budget, equal for every distribution and method. `seed` is the seed of the study.
    `phase2_lr_factor` is the factor of the learning rate in the second phase.
    """

    iterations: Count = 10_000
    batch_size: Count = 64
    seed: Annotated[int, Field(ge=0)] = 0
    phase2_lr_factor: Annotated[float, Field(gt=0)] = 0.1


class Search(Section):
    """Several trainings of one set and method: `runs` trainings with each of `rates`. The table uses the best
    training.
    """

    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    runs: Count = 1


Score = Literal[
    "loss", "auc", "accuracy", "balanced_accuracy", "sensitivity", "f_score", "sensitivity_and_f_score"
]


class Validation(Section):
    """Validation images: they choose a checkpoint, stop a training, choose thresholds and choose among runs.

    `held_out`: number of training images of each class that are kept out of every distribution and are
    scored. `images` determines the validation images: none; `train`: `per_class` other training images of
    each class, which are neither used for training nor scored; the held-out images; every second test image
    (then scores on the other test images are also given); the test set itself, as in both publications; or
    the validation images of the set. Sensitivity and F-score are computed for the class `of`; without `of`
    the mean over the classes is used.
    """

    held_out: Annotated[int, Field(ge=0)] = 0
    images: Literal["none", "train", "own", "held_out", "half", "test"] = "none"
    per_class: Annotated[int, Field(ge=0)] = 0
    score: Score = "loss"
    of: str | None = None
    every: Count = 500
    checkpoint: Literal["last", "best"] = "last"
    patience: Count | None = None

    def _rules(self) -> Rules:
        return (
            (
                self.images == "none" and (self.checkpoint == "best" or self.patience is not None),
                "checkpoint 'best' and patience need a score; choose its images with validation.images",
            ),
            (
                self.images == "held_out" and self.held_out == 0,
                "images 'held_out' needs validation.held_out, the training images of each class to keep out",
            ),
            (
                (self.images == "train") != (self.per_class > 0),
                "per_class, the training images of each class for validation, is needed with images 'train' "
                "and only with it",
            ),
        )


class Decisions(Section):
    """Decision rules in addition to the largest probability. They need no other training.

    `priors`: divide by the class frequencies of the imbalanced set (`set`, as published) or of the draws
    (`ledger`). `tuned`: thresholds with the best score on the validation images, for each of these scores.
    `costs[i][j]`: cost of deciding class j if the true class is i.
    """

    priors: tuple[Literal["set", "ledger"], ...] = ("set",)
    tuned: tuple[Literal["accuracy", "balanced_accuracy", "f_score"], ...] = ()
    costs: tuple[tuple[Annotated[float, Field(ge=0)], ...], ...] | None = None


class Record(Section):
    """Results that are kept in addition to the scores: learning curves (one point every `curve_every`
    iterations; 0 for no curves), ROC curves, and scores on the training images. `auc_resamples`: number of
    resamples for the interval of the AUC over the images; 0 for no interval.
    """

    curve_every: Annotated[int, Field(ge=0)] = 0
    roc: bool = False
    train: bool = False
    auc_resamples: Annotated[int, Field(ge=0)] = 200


class StudySettings(Section):
    """A whole study: every distribution x repeat x method x rate x run is a network.

    `base` is the number of images of a majority class; None uses the number of images of the rarest class.
    `published` is the name of a table of the systematic study that is printed next to ours. `stack` is the
    number of networks that each process trains together. "auto" is 1 on a CPU; on a GPU it is the number of
    networks that fit into half of the memory, at most 64. Networks with batch norm or dropout are trained one
    by one. The rows differ only by rounding.
    """

    images: Images = Images()
    base: Count | None = 5000
    distributions: Annotated[tuple[Distribution, ...], Field(min_length=1)] = (
        Distribution(kind="step", rho=(10.0,), mu=(0.5,)),
    )
    repeats: Count = 1
    methods: dict[str, Knobs] = Field(default_factory=lambda: {"baseline": Knobs()})
    network: Network = Network()
    optimizer: Optimizer = Optimizer(
        kind="sgd",
        lr=0.01,
        weight_decay=5e-4,
        decay="everything",
        nesterov=False,
        schedule="inverse",
        gamma=1e-4,
        power=0.75,
    )
    training: Training = Training()
    search: Search = Search()
    validation: Validation = Validation()
    decisions: Decisions = Decisions()
    record: Record = Record()
    published: Literal["table4"] | None = None
    stack: Literal["auto"] | Count = "auto"

    def _rules(self) -> Rules:
        return (
            *(
                (
                    name not in self.methods,
                    f"distributions: no method '{name}'; the study has {', '.join(self.methods)}",
                )
                for distribution in self.distributions
                for name in distribution.methods or ()
            ),
            (
                self.decisions.tuned and self.validation.images == "none",
                "decisions.tuned needs validation.images: thresholds must be chosen on images that were not "
                "trained on",
            ),
        )


class Detector(Section):
    """Size and budget of the autoencoder. Deep SVDD has another budget of the same size."""

    width: Count = 16
    code: Count = 32
    iterations: Count = 1000
    batch_size: Count = 64
    optimizer: Optimizer = Optimizer(kind="adam", lr=1e-3, weight_decay=1e-6, schedule="cosine")


class NoveltySettings(Section):
    """A study that compares one-class detectors with classifiers of two classes.

    A detector is trained only on `base` images of the common class. A classifier is trained on the same
    images and on base / rho images of the rare class, for each `rho` and each of `methods`. Both are scored
    by the AUC on the test images of the two classes. Each of `pairs` is a common and a rare class.
    """

    study: Literal["novelty"]
    images: Images = Images()
    pairs: Annotated[tuple[tuple[str, str], ...], Field(min_length=1)]
    base: Annotated[int, Field(ge=10)] = 5000
    rho: Annotated[tuple[Rho, ...], Field(min_length=1)] = (10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0)
    repeats: Count = 1
    detector: Detector = Detector()
    methods: dict[str, Knobs] = Field(default_factory=lambda: {"baseline": Knobs(), "oversample": Knobs()})
    network: Network = Network()
    optimizer: Optimizer = StudySettings().optimizer
    training: Training = Training(iterations=1000)

    def _rules(self) -> Rules:
        return (
            (
                max(self.rho) > self.base,
                f"rho {max(self.rho):g} leaves no image of the rare class: base is {self.base}; give "
                f"{self.base} at most",
            ),
            *(
                (
                    knobs.two_phase or len(knobs.imbalance_ratio) > 1,
                    f"methods.{name}: one network of one phase each",
                )
                for name, knobs in self.methods.items()
            ),
        )

    @property
    def of_classifiers(self) -> StudySettings:
        """The settings of the classifiers, in the form of a study of imbalance."""
        return StudySettings(
            methods=self.methods, network=self.network, optimizer=self.optimizer, training=self.training
        )


Learner = Literal["prototypical", "matching", "memory", "fine_tune", "oversample"]


class FewShotSettings(Section):
    """A study of few-shot learning: a network classifies new classes from `shots` shown images of each class.

    `unseen` are the classes that are kept out of training: names, or a pattern such as "images_evaluation/*".
    An episode has `ways` unseen classes. Its shown images are training images, and its `queries` of each
    class are test images. Accuracy is the mean over `episodes`. "oversample" trains a new network, `draws`
    times, on the images of the seen classes together with the shown images. `memory_iterations` is the budget
    of the memory network, which learns slowly.
    """

    study: Literal["few_shot"]
    images: Images = Images()
    unseen: Annotated[tuple[str, ...], Field(min_length=1)]
    ways: Annotated[int, Field(ge=2)] = 5
    shots: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 20)
    queries: Count = 15
    episodes: Count = 600
    draws: Count = 5
    repeats: Count = 1
    methods: Annotated[tuple[Learner, ...], Field(min_length=1)] = (
        "prototypical",
        "matching",
        "memory",
        "fine_tune",
        "oversample",
    )
    width: Count = 32
    train_queries: Count = 5
    training: Training = Training(iterations=400)
    memory_iterations: Count = 1000
    episodes_at_once: Count = 4
    optimizer: Optimizer = Optimizer(kind="adam", lr=1e-3, weight_decay=1e-6, schedule="cosine")
