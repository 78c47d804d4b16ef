"""One-class detectors compared with classifiers of two classes: pair x method x ratio -> AUC, and the
imbalance ratio from which a detector is better.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from brats_seg.classification.bench import Purpose, open_images, study_seed
from brats_seg.classification.fitting import Looks, build_network, fit, probabilities
from brats_seg.classification.image_set import Splits, keep_classes
from brats_seg.classification.methods import Remedy, remedies
from brats_seg.classification.one_class import SCORES, detect
from brats_seg.classification.settings import Images, NoveltySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.statistics import describe
from brats_seg.core.tables import interval_text, markdown_table
from brats_seg.imbalance.distributions import Distribution, choose_examples, class_counts
from brats_seg.models.checkpoint import library_versions
from brats_seg.models.one_class import Autoencoder
from brats_seg.studies.grid import Job
from brats_seg.studies.image_cells import runtime_once
from brats_seg.studies.lines import Series, lines_figure, method_look, method_name
from brats_seg.studies.store import Row
from brats_seg.training.remedies import IMAGE_CODE

ONE_CLASS = "one_class"
N_RESAMPLES = 2000


@dataclass(frozen=True)
class NoveltyJob(Job):
    """Everything that determines the rows of a network: a pair of classes, a repeat, and a classifier with
    its imbalance ratio. A job without a classifier trains all detectors of the pair together. A detector has
    no imbalance ratio.
    """

    common: str
    rare: str
    repeat: int
    remedy: Remedy | None = None
    rho: float | None = None

    @property
    def method(self) -> str:
        """The name of the classifier, or "one_class" for the detectors."""
        return ONE_CLASS if self.remedy is None else self.remedy.name

    @property
    def key(self) -> str:
        """The name of the job for people."""
        ratio = "" if self.rho is None else f", rho {self.rho:g}"
        return f"{self.common} and {self.rare}, repeat {self.repeat}, {self.method}{ratio}"

    def tree(self) -> dict[str, Any]:
        """Everything that determines the rows, as plain values."""
        tree: dict[str, Any] = {
            "pair": [self.common, self.rare],
            "repeat": self.repeat,
            "method": self.method,
        }
        if self.remedy is None:
            return tree
        return tree | {"knobs": self.remedy.recorded_knobs, "rho": self.rho}


def check_novelty(settings: NoveltySettings, splits: Splits) -> None:
    """Raise `UsageError` for a class that does not exist or has too few images, for an unknown method, or for
    images that a network does not accept.
    """
    novelty_jobs(settings)
    for pair in settings.pairs:
        for rho in settings.rho:
            pair_counts(settings.base, rho, available=keep_classes(splits, pair).train.counts)
    cpu = Runtime(torch.device("cpu"))
    build_network(settings.of_classifiers, splits.train, seed=0, runtime=cpu)
    Autoencoder(splits.train.n_channels, splits.train.image_size)


def novelty_jobs(settings: NoveltySettings) -> tuple[NoveltyJob, ...]:
    """Every job of a study; the first repeat of all pairs comes first. Raises `UsageError` for an unknown
    method, or for a method that trains more than one network.
    """
    methods = remedies(settings.methods)
    for remedy in methods:
        if remedy.has_second_phase or any(getattr(remedy.recipe, part) for part in IMAGE_CODE):
            raise UsageError(f"methods.{remedy.name}: one network of one phase each, on plain images")
    return tuple(
        NoveltyJob(common, rare, repeat, remedy, rho)
        for repeat in range(settings.repeats)
        for common, rare in settings.pairs
        for remedy, rho in [(None, None), *((remedy, rho) for remedy in methods for rho in settings.rho)]
    )


def shorten_novelty(settings: NoveltySettings, share: float) -> NoveltySettings:
    """The same study with only a share of the iterations. A plan measures its time."""
    detector, training = (
        part.model_copy(update={"iterations": max(1, round(share * part.iterations))})
        for part in (settings.detector, settings.training)
    )
    return settings.model_copy(update={"detector": detector, "training": training})


def pair_counts(base: int, rho: float, *, available: np.ndarray) -> np.ndarray:
    """The number of training images of the common and of the rare class. Raises `UsageError` if a class has
    fewer.
    """
    step = Distribution("step", rho=rho, mu=0.5)
    return class_counts(step, available=available, most=base, order=np.array([1, 0]))


def novelty_rows(job: NoveltyJob, *, settings: NoveltySettings, folder: str, device: str) -> list[Row]:
    """The rows of a job: one row for a classifier, or one row for each score of the detectors.

    Args:
        job: the network or the detectors.
        settings: settings of the study.
        folder: folder of the images.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """
    start, runtime = time.perf_counter(), runtime_once(device)
    pair = keep_classes(images_once(settings.images.model_dump_json(), folder), (job.common, job.rare))
    train, test = (ImageSource(part, device=runtime.device) for part in (pair.train, pair.test))
    # all methods of a pair have the same number, so they use the same images
    number = int.from_bytes(hashlib.sha256(f"{job.common}/{job.rare}".encode()).digest()[:8])
    seed = study_seed(settings.of_classifiers, Purpose.SET, number, job.repeat)
    counts = pair_counts(settings.base, job.rho or max(settings.rho), available=pair.train.counts)
    if job.remedy is None:
        counts[1] = 0
    pool = train.restrict(choose_examples(train.labels, counts, seed=seed))
    if job.remedy is None:
        scores = detect(pool, test, detector=settings.detector, seed=seed, runtime=runtime)
    else:
        scores = {job.remedy.name: _classified(job.remedy, pool, test, settings, seed, runtime)}
    about = {
        "images": settings.images.name, "common": job.common, "rare": job.rare, "repeat": job.repeat,
        "rho": job.rho, "n_common": int(counts[0]), "n_rare": int(counts[1]), "n_test": len(test),
        "seconds": round(time.perf_counter() - start, 2), "seed": seed, "versions": library_versions(),
    }  # fmt: skip
    return [
        about | {"method": name, "auc": float(roc_auc_score(test.labels == 1, values))}
        for name, values in scores.items()
    ]


def _classified(
    remedy: Remedy,
    pool: ImageSource,
    test: ImageSource,
    settings: NoveltySettings,
    seed: int,
    runtime: Runtime,
) -> Float64[np.ndarray, " n"]:
    """Probability of the rare class for each test image, by a network trained on both classes."""
    study = settings.of_classifiers
    network = build_network(study, pool.set, seed=seed, runtime=runtime)
    config = remedy.config(study, lr=study.optimizer.lr, seed=seed)
    fitted = fit(network, pool, config, redraw=remedy.knobs.redraw, runtime=runtime, looks=Looks())
    return probabilities(fitted.network, test, runtime=runtime)[:, 1]


@lru_cache(maxsize=1)
def images_once(images_json: str, folder: str) -> Splits:
    """The images of a study, read once in each process."""
    return open_images(Images.model_validate_json(images_json), Path(folder), cache=None)


# From rows to a table


def novelty_table(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The table of the study, as rows and as lines of Markdown: the mean AUC of each method and ratio with
    its interval over pairs and repeats, and the ratio from which each detector is better than each
    classifier.
    """
    curves = _curves(rows)
    rhos = sorted({row["rho"] for row in rows if row["rho"] is not None})
    means = [
        {
            "method": method,
            "rho": rho,
            **describe(list(values.values()), [f"{unit[0]}/{unit[1]}" for unit in values]),
        }
        for method, by_rho in curves.items()
        for rho, values in by_rho.items()
    ]
    crossings: list[Row] = []
    for detector, classifier in product(SCORES, curves):
        by_rho = {rho: curves[classifier][rho] for rho in rhos if rho in curves[classifier]}
        if by_rho and detector in curves:
            found = crossing(curves[detector][None], by_rho)
            crossings += [{"detector": detector, "classifier": classifier, **found}] if found["n"] else []
    cells = {(mean["method"], mean["rho"]): mean for mean in means}
    lines = [
        [
            method_name(method),
            *(percent_text(cells.get((method, None if None in by_rho else rho))) for rho in rhos),
        ]
        for method, by_rho in curves.items()
    ]
    wins = [
        [method_name(row["detector"]), method_name(row["classifier"]), row["n"], _from(row, rhos)]
        for row in crossings
    ]
    text = [
        "# AUC, %, by the imbalance ratio (95 % interval over pairs)",
        "",
        *markdown_table(["method", *(f"{rho:g}" for rho in rhos)], lines),
        "",
        "# From which ratio on a detector is better than a classifier (95 % interval over pairs)",
        "",
        *markdown_table(["detector", "classifier", "n", "from"], wins),
    ]
    return [*means, *crossings], text


def crossing(
    detector: Mapping[Any, float], classifier: Mapping[float, Mapping[Any, float]]
) -> dict[str, float | int | None]:
    """The smallest ratio from which the mean AUC of a detector is higher than that of a classifier, up to the
    largest ratio.

    Between two ratios the difference of the means is interpolated linearly over the logarithm of the ratio.

    Args:
        detector: AUC by unit (pair and repeat).
        classifier: AUC by ratio and unit.

    Returns:
        `n` units; `ratio`, `low` and `high`: the ratio and its 95 % interval by bootstrap of the units. The
        ratio is 0 if the detector is better at every ratio. The ratio is None if the detector is not better
        at the largest ratio. If no unit has all AUCs, `n` is 0 and the other values are None.
    """
    units = sorted(set(detector).intersection(*classifier.values()))
    if not units:
        return {"n": 0, "ratio": None, "low": None, "high": None}
    rhos = np.array(sorted(classifier))
    gains = np.array([[detector[unit] - classifier[rho][unit] for rho in rhos] for unit in units])
    drawn = np.random.default_rng(0).integers(len(units), size=(N_RESAMPLES, len(units)))
    wins = np.sort([_first_win(rhos, gains[numbers].mean(axis=0)) for numbers in drawn])
    low, high = (wins[int(q * (N_RESAMPLES - 1))] for q in (0.025, 0.975))
    ratio = _first_win(rhos, gains.mean(axis=0))
    plain = {name: None if np.isinf(value) else float(value) for name, value in
             (("ratio", ratio), ("low", low), ("high", high))}  # fmt: skip
    return {"n": len(units), **plain}


def _first_win(rhos: np.ndarray, gains: np.ndarray) -> float:
    """The ratio from which all gains are above 0: 0 if every gain is, infinity if the last gain is not."""
    losses = np.flatnonzero(gains <= 0)
    if not len(losses):
        return 0.0
    last = int(losses[-1])
    if last == len(gains) - 1:
        return float("inf")
    share = -gains[last] / (gains[last + 1] - gains[last])
    return float(np.exp((1 - share) * np.log(rhos[last]) + share * np.log(rhos[last + 1])))


def novelty_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The AUC over the ratio: one line for each classifier, and one horizontal line for each detector."""
    curves = _curves(rows)
    rhos = sorted({row["rho"] for row in rows if row["rho"] is not None})
    lines = [
        Series(
            method_name(method),
            method_look(method, list(curves)),
            {rho: [100 * v for v in by_rho.get(rho, by_rho.get(None, {})).values()] for rho in rhos},
        )
        for method, by_rho in curves.items()
    ]
    figure = lines_figure([("one class, and two", lines)], x_label="imbalance ratio", score="auc")
    return {} if figure is None else {"one_class": figure}


def _curves(rows: Sequence[Row]) -> dict[str, dict[float | None, dict[tuple[str, str, int], float]]]:
    """AUC by method, ratio (None for a detector) and unit."""
    curves: dict[str, dict[float | None, dict[Any, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        curves[row["method"]][row["rho"]][row["common"], row["rare"], row["repeat"]] = row["auc"]
    return {method: dict(curves[method]) for method in sorted(curves, key=lambda name: name in SCORES)}


def percent_text(mean: Mapping[str, Any] | None, *, of: str = "mean") -> str:
    """A mean in percent with its interval, or a dash if there is no mean."""
    if mean is None:
        return "-"
    ends = mean["interval95"] and [100 * end for end in mean["interval95"]]
    return f"{100 * mean[of]:.1f}" + interval_text({"interval95": ends}, digits=1)


def _from(row: Mapping[str, Any], rhos: Sequence[float]) -> str:
    def word(value: float | None) -> str:
        if value is None:
            return f"never up to {rhos[-1]:g}"
        return f"under {rhos[0]:g}" if value == 0 else f"{value:.0f}"

    return f"{word(row['ratio'])} [{word(row['low'])}, {word(row['high'])}]"
