"""Every knob of a study of learning from a few images of a class (`study: few_shot`)."""

from typing import Annotated, Literal

from pydantic import Field

from brats_seg.classification.settings import Count, Images, Training
from brats_seg.core.sections import Optimizer
from brats_seg.core.settings import Section

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
