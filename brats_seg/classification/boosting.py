"""Committees that use their own errors: the weights of boosting, and new labels by expected costs."""

import numpy as np
from jaxtyping import Float32, Float64, Int64
from sklearn.neighbors import NearestNeighbors

from brats_seg.classification.decisions import Probabilities
from brats_seg.core.shapes import Counts, Ids

Labels = Int64[np.ndarray, " n"]
Weights = Float64[np.ndarray, " n"]
"""The weight of each training image; the weights sum to 1."""


def boosting_round(known: Probabilities, labels: Labels, weights: Weights) -> tuple[Weights, float]:
    """The weights of the next round, and the vote of the network of this round (AdaBoost.M2, as in RUSBoost,
    Seiffert et al. 2010, section 3, and SMOTEBoost, Chawla et al. 2003, section 3).

    With p the probability of the image's own class and q the mean of the others, the pseudo-loss is half the
    weighted mean of 1 - p + q, and a = loss / (1 - loss). A weight is multiplied by a^((1 + p - q) / 2), so
    an image that the network classifies well loses weight. The vote is log(1 / a). It is almost 0 for a
    network that is not better than chance.

    Args:
        known: class probabilities of the training images.
        labels: class of each training image.
        weights: weights of this round.
    """
    own = known[np.arange(len(known)), labels]
    other = (1 - own) / (known.shape[1] - 1)
    loss = float(np.clip((weights * (1 - own + other)).sum() / 2, 1e-6, 0.499))
    odds = loss / (1 - loss)
    following = weights * odds ** ((1 + own - other) / 2)
    return following / following.sum(), float(-np.log(odds))


def drawn_by_weight(
    labels: Int64[np.ndarray, " images"],
    weights: Float64[np.ndarray, " images"],
    *,
    goal: Counts,
    seed: int,
    again: bool = False,
) -> Ids:
    """Positions of `goal` images of each class, drawn by their weights. With `again` an image can be drawn
    several times.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for k, n in enumerate(goal.tolist()):
        members = np.flatnonzero(labels == k)
        if n:
            shares = weights[members] / weights[members].sum()
            chosen.append(generator.choice(members, n, replace=again, p=shares))
    return np.concatenate(chosen).astype(np.int64)


def grow_hard(
    images: Float32[np.ndarray, "n features"],
    labels: Labels,
    weights: Weights,
    *,
    n_hard: int,
    seed: int,
) -> tuple[Float32[np.ndarray, "m features"], Int64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    """The images and new images made from the hard images of every class (DataBoost-IM, Guo and Viktor 2004),
    with class and weight of each image.

    The hard images are the `n_hard` images with the largest weights. They are used in turn. The goal of each
    class with a hard image is the size of the largest class plus the largest number of hard images in a
    class. A new image lies between a hard image and a random image of its class, nearer to the hard image.
    The new images of a hard image share its weight, and the hard image keeps its own weight.

    Args:
        images: values of the training images.
        labels: class of each training image.
        weights: weights of this round.
        n_hard: number of hard images; with 0 there are no new images.
        seed: seed of the draws.
    """
    generator, counts = np.random.default_rng(seed), np.bincount(labels)
    hard = np.argsort(-weights, kind="stable")[:n_hard]
    n_of_class = np.bincount(labels[hard], minlength=len(counts))
    goal = counts.max() + n_of_class.max(initial=0)
    made = [
        (np.resize(hard[labels[hard] == k], goal - counts[k]),
         generator.choice(np.flatnonzero(labels == k), goal - counts[k]))
        for k in np.flatnonzero(n_of_class)
    ]  # fmt: skip
    if not made:
        return images, labels, weights
    first, second = (np.concatenate(ids) for ids in zip(*made, strict=True))
    shares = generator.uniform(0, 0.5, (len(first), 1)).astype(np.float32)
    new = images[first] + shares * (images[second] - images[first])
    return (
        np.concatenate([images, new]),
        np.concatenate([labels, labels[first]]),
        np.concatenate([weights, weights[first] / np.bincount(first)[first]]),
    )


def cheapest_labels(known: Probabilities, *, counts: Counts) -> Labels:
    """The class of the lowest expected cost (MetaCost, Domingos 1999, section 3). The cost of a missed image
    is 1 divided by the number of images of its class. A class without images is never chosen.
    """
    gain = np.divide(known, counts, out=np.zeros_like(known), where=counts > 0)
    return gain.argmax(1).astype(np.int64)


def decontaminated(images: np.ndarray, labels: Labels, *, neighbors: int) -> tuple[Ids, Labels]:
    """Generalized editing (Koplowitz and Brown 1981) of all classes except the rarest: the images that are
    kept, and the class of each.

    An image gets the class of more than half of its neighbors. If no class has more than half of the
    neighbors, the image is left out. Images of the rarest classes are not changed, because most of their
    neighbors have common classes.

    Args:
        images: (n, features).
        labels: class of each image.
        neighbors: number of neighbors.
    """
    n_classes = int(labels.max()) + 1
    index = NearestNeighbors(n_neighbors=min(neighbors, len(images) - 1)).fit(images)
    nearest = labels[index.kneighbors(return_distance=False)]
    votes = np.stack([(nearest == k).sum(1) for k in range(n_classes)], 1)
    counts = np.bincount(labels)
    is_rare = counts[labels] == counts[counts > 0].min()
    stays = is_rare | (votes.max(1) > nearest.shape[1] / 2)
    return np.flatnonzero(stays), np.where(is_rare, labels, votes.argmax(1))[stays].astype(np.int64)
