"""A study that trains in a second: 20 x 20 images of four classes, each a bright stripe at its own height."""

from pathlib import Path
from typing import Any

import numpy as np

from brats_seg.classification.settings import StudySettings
from brats_seg.core.settings import parse_settings

N_CLASSES = 4


def write_images(path: Path, *, n_train: int = 40, n_test: int = 20, side: int = 20, seed: int = 0) -> Path:
    """Write an .npz of noisy stripes, `n_train` and `n_test` images a class."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for part, n in (("train", n_train), ("test", n_test)):
        labels = np.repeat(np.arange(N_CLASSES), n)
        images = generator.integers(0, 200, (len(labels), side, side), dtype=np.uint8)
        for i, label in enumerate(labels):
            images[i, 4 * label : 4 * label + 4] //= 2
            images[i, 4 * label : 4 * label + 4] += 100
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    np.savez(path, **arrays)
    return path


def tiny_settings(**changes: Any) -> StudySettings:
    """Two sets of rare classes, three methods, ten iterations."""
    tree: dict[str, Any] = {
        "images": {"name": "npz"},
        "base": 40,
        "distributions": [{"kind": "step", "rho": [4, 10], "mu": [0.5]}],
        "methods": {"baseline": {}, "oversample": {"two_phase": True}, "undersample": {}},
        "network": {"name": "lenet5"},
        "training": {"iterations": 10, "batch_size": 16},
        "decisions": {"priors": ["set", "ledger"]},
    }
    return parse_settings(StudySettings, tree | changes)
