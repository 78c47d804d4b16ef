"""Every knob of a study of one-class detection (`study: novelty`)."""

from typing import Annotated, Literal

from pydantic import Field

from brats_seg.classification.settings import Count, Images, Knobs, Network, Rho, StudySettings, Training
from brats_seg.core.sections import Optimizer
from brats_seg.core.settings import Rules, Section


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
                    knobs.two_phase or knobs.kind == "easy_ensemble" or len(knobs.imbalance_ratio) > 1,
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
