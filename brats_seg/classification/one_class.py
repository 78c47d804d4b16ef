"""Novelty detectors: they are trained on one class and give each image a score. A higher score means less
similar to this class.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from torch import nn

from brats_seg.classification.own_loss import fit_own_loss
from brats_seg.classification.settings import Detector
from brats_seg.classification.source import ImageSource
from brats_seg.core.config import Config
from brats_seg.core.runtime import Runtime, evaluating
from brats_seg.core.sections import Sampler, Training
from brats_seg.models.one_class import Autoencoder, DeepSvdd

Newness = Float64[np.ndarray, " n"]
"""A score for each image; higher if the image is less similar to the training class."""
SCORES = ("absolute", "squared", "mahalanobis", "isolation_forest", "deep_svdd")


def detect(
    train: ImageSource, test: ImageSource, *, detector: Detector, seed: int, runtime: Runtime
) -> Mapping[str, Newness]:
    """Train an autoencoder and the other detectors on one class, and score other images.

    Args:
        train: images of the training class.
        test: images to score.
        detector: size and budget of the detectors.
        seed: seed of the first weights, the draws and the forest.
        runtime: device and precision.

    Returns:
        The scores by name. "absolute", "squared" and "mahalanobis" use the error of the reconstruction: its
        mean over the pixels, or its distance with the covariance of the training errors, shrunk by the rule
        of Ledoit and Wolf. "isolation_forest" is the forest of scikit-learn on the features of the
        autoencoder. "deep_svdd" (Ruff et al. 2018) starts from the weights of the autoencoder.

    Raises:
        UsageError: a side of the images is not a multiple of 4.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        autoencoder = Autoencoder(
            train.shape[3], (train.shape[1], train.shape[2]), width=detector.width, code=detector.code
        )
    fit_own_loss(autoencoder, train, config_of(detector, seed=seed), runtime=runtime)
    errors = {
        part: outputs_of(autoencoder, "residual", pool, runtime=runtime)
        for part, pool in (("train", train), ("test", test))
    }
    features = {
        part: outputs_of(autoencoder, "encoder", pool, runtime=runtime)
        for part, pool in (("train", train), ("test", test))
    }
    scores = {
        "absolute": np.abs(errors["test"]).mean(axis=1),
        "squared": np.square(errors["test"]).mean(axis=1),
        "mahalanobis": LedoitWolf().fit(errors["train"]).mahalanobis(errors["test"]),
        "isolation_forest": -IsolationForest(random_state=seed % 2**32)
        .fit(features["train"])
        .score_samples(features["test"]),
    }
    center = torch.from_numpy(features["train"].mean(axis=0)).float()
    svdd = DeepSvdd(deepcopy(autoencoder.encoder), center)
    fit_own_loss(svdd, train, config_of(detector, seed=seed), runtime=runtime)
    return {**scores, "deep_svdd": outputs_of(svdd, "forward", test, runtime=runtime)[:, 0]}


def config_of(detector: Detector, *, seed: int) -> Config:
    """The budget of a detector as a training config whose epochs are single steps."""
    return Config(
        sampler=Sampler(kind="random", allow_absent_class=True),
        optimizer=detector.optimizer,
        training=Training(epochs=detector.iterations, steps=1, batch_size=detector.batch_size, seed=seed),
    )


@torch.no_grad()
def outputs_of(
    network: nn.Module, name: str, pool: ImageSource, *, runtime: Runtime
) -> Float64[np.ndarray, "n values"]:
    """The output of a named method or module of a network for each image of a pool, one row for each
    image.
    """
    give: Any = getattr(network, name)
    with evaluating(network), runtime.autocast():
        return torch.cat([give(inputs).flatten(1).double() for inputs in pool.batches()]).cpu().numpy()
