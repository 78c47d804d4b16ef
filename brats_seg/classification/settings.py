"""Every knob of a study of each kind."""

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
    """Which images.

    `folder` None is the folder of that name under BRATS_SEG_DATA. `preprocessing` of CIFAR-10: global
    contrast normalization and ZCA whitening, fitted on the training images. `classes` keeps some classes, in
    the order given.
    """

    name: Literal["mnist", "cifar10", "cifar100", "imagenet_lt", "omniglot", "folder", "npz"] = "mnist"
    folder: str | None = None
    preprocessing: Literal["none", "gcn_zca"] = "none"
    classes: tuple[str, ...] | None = None


class Distribution(Section):
    """Unbalanced training sets: one for each `rho`, `mu` and repeat.

    `minority` says which classes are rare: drawn anew for each repeat, or the first ones, or the last ones.
    `methods` keeps some of the study's methods; `repeats` None is the study's number.
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
                "mu, the share of rare classes, goes with kind 'step' and with no other",
            ),
            (
                (self.kind == "given") != (self.counts is not None),
                "counts, the images of each class, go with kind 'given' and with no other",
            ),
        )


class Knobs(Section):
    """The knobs of a remedy; each remedy takes what it needs.

    Attributes:
        kind: a name in `methods.METHODS`; None is the name it has in the study.
        imbalance_ratio: of over- and undersampling: the majority over the minority that is left; several make
            a network each.
        redraw: of undersampling: one fixed subset, or a new one each epoch.
        two_phase: go on from the finished network with its output layer alone, at the natural frequencies.
        tau: of logit adjustment.
        weights_from: of deferred re-weighting: share of the iterations before the weights hold.
        augment: of perturbed copies: what is done to an image of a rare class.
        hard: of hard-example replay: the threshold, whether a pool starts again, its age. Without it, the
            network looks at all images of a class, and a pool starts again when it is used up, as in the
            studies that are stored.
        networks: of EasyEnsemble and BalanceCascade.
        neighbors: of the samplers of imbalanced-learn that look at neighbors.
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
    """Which network. `precision` bf16 is faster and not the published arithmetic.

    `output_weights` are those that the last layer starts with: "scaled" as in the other layers, or "zero".
    """

    name: str = "lenet5"
    output_weights: Literal["scaled", "zero"] = "scaled"
    precision: Literal["float32", "bf16"] = "float32"


class Training(Section):
    """The budget, equal for every distribution and method; `seed` is the study's. `phase2_lr_factor` is the
    second phase's rate.
    """

    iterations: Count = 10_000
    batch_size: Count = 64
    seed: Annotated[int, Field(ge=0)] = 0
    phase2_lr_factor: Annotated[float, Field(gt=0)] = 0.1


class Search(Section):
    """Several trainings of one set and method, of which the table takes the best: each of `rates`, `runs`
    times.
    """

    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    runs: Count = 1


Score = Literal[
    "loss", "auc", "accuracy", "balanced_accuracy", "sensitivity", "f_score", "sensitivity_and_f_score"
]


class Validation(Section):
    """Images that pick a checkpoint, stop a training, choose thresholds and choose among runs.

    `held_out`: so many training images of each class are kept out of every distribution, and scored on.
    `images` says what validates: nothing; `train`, further training images, `per_class` of each, which are
    neither trained nor scored on; those held out; every second test image (scores on the rest are then given
    as well); the test set itself, as both sources did; or the set's own validation images. Sensitivity and
    F-score are `of` a class; without it the mean over the classes.
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
                "checkpoint 'best' and patience look at a score; validation.images says on which images",
            ),
            (
                self.images == "held_out" and self.held_out == 0,
                "images 'held_out' needs validation.held_out, the training images of each class to keep out",
            ),
            (
                (self.images == "train") != (self.per_class > 0),
                "per_class, the training images of each class that validate, goes with images 'train' and "
                "with nothing else",
            ),
        )


class Decisions(Section):
    """How classes are decided from probabilities, beside the largest one; no network is trained for these.

    `priors`: divide by the class frequencies of the imbalanced set (`set`, as published) or of what the
    network saw (`ledger`). `tuned`: thresholds that are best by these scores on the validation images.
    `costs[i][j]`: of saying j where it is i.
    """

    priors: tuple[Literal["set", "ledger"], ...] = ("set",)
    tuned: tuple[Literal["accuracy", "balanced_accuracy", "f_score"], ...] = ()
    costs: tuple[tuple[Annotated[float, Field(ge=0)], ...], ...] | None = None


class Record(Section):
    """What is kept beside the scores: learning curves (every so many iterations; 0 for none), ROC curves,
    scores on the training images. `auc_resamples`: of the interval of the AUC over the images; 0 for none.
    """

    curve_every: Annotated[int, Field(ge=0)] = 0
    roc: bool = False
    train: bool = False
    auc_resamples: Annotated[int, Field(ge=0)] = 200


class StudySettings(Section):
    """A whole study: every distribution x repeat x method x rate x run is a network.

    `base` is the number of images of a majority class; None takes all of the rarest class's. `published`
    names a table of the systematic study to print beside ours. `stack`: so many networks are trained together
    in each process; "auto" is 1 on a CPU, and on a GPU as many as half of its memory holds, 64 at most.
    Networks with batch norm or dropout are trained one by one. The rows are the same but for the rounding of
    sums.
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
                    f"distributions: no method '{name}'; the study's are {', '.join(self.methods)}",
                )
                for distribution in self.distributions
                for name in distribution.methods or ()
            ),
            (
                self.decisions.tuned and self.validation.images == "none",
                "decisions.tuned needs validation.images: thresholds are chosen on images that were not "
                "trained on",
            ),
        )


class Detector(Section):
    """Size and budget of the autoencoder; deep SVDD has the same budget again."""

    width: Count = 16
    code: Count = 32
    iterations: Count = 1000
    batch_size: Count = 64
    optimizer: Optimizer = Optimizer(kind="adam", lr=1e-3, weight_decay=1e-6, schedule="cosine")


class NoveltySettings(Section):
    """One-class detectors against classifiers of two classes.

    A detector is trained on `base` images of the common class alone. A classifier is trained on them and on
    base / rho images of the rare class, for each `rho` and each of `methods`. Both are scored by the AUC on
    the test images of the two classes. `pairs` are common and rare class.
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
                f"rho {max(self.rho):g} leaves no image of the rare class: base is {self.base}; take "
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
        """The settings of the classifiers, as a study of imbalance has them."""
        return StudySettings(
            methods=self.methods, network=self.network, optimizer=self.optimizer, training=self.training
        )


Learner = Literal["prototypical", "matching", "memory", "fine_tune", "oversample"]


class FewShotSettings(Section):
    """Classes that a network has never seen, of which it is shown `shots` images each.

    `unseen` are the classes kept out of training: names, or a pattern such as "images_evaluation/*". An
    episode is `ways` of them; its shown images are training images, its `queries` of each class are test
    images. Accuracy is the mean over `episodes`. "oversample" trains anew, `draws` times, on the images of
    the seen classes and the shown ones together.
    `memory_iterations` is the budget of the network with a memory, which learns slowly.
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
