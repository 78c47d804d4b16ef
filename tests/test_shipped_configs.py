"""Every study and experiment that travels along runs in small, from its data to its figures and tables."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from brats_seg import pipeline
from brats_seg.bank.build import BuildOptions
from brats_seg.classification import whitening
from brats_seg.classification.settings import Distribution, StudySettings
from brats_seg.classification.whitening import Whitening
from brats_seg.core.settings import config_names
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.studies.experiment import run_experiment
from brats_seg.studies.grid import GridWorkers
from brats_seg.studies.kinds import OwnGrid, draw_own_figures, load_study, run_own_grid, write_own_table
from brats_seg.studies.strategies import ExperimentConfig, Strategy, load_experiment, make_strategies
from brats_seg.studies.study import draw_figures, run_study, study_table
from brats_seg.studies.study_table import write_table


@pytest.fixture(autouse=True)
def coarse(laid_out: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have their layout, at fewer dots."""
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, file, **how: save(figure, file, **how | {"dpi": DOTS})
    )


SIZE = 48
"""Voxels of a phantom along its longest axis: the smallest there are."""
N_TRAIN = 40
N_TEST = {"mnist": 6, "cifar10": 2, "cifar100": 1, "folder": 1}
"""Images of each class."""
DOTS = 60
"""Dots an inch of a figure; the package draws 150."""
A_DRAWN_FIGURE = 2000
"""Bytes of its file at 60 dots an inch: the smallest one takes 2,600, an empty panel 1,700."""


DONE: set[str] = set()
"""Kinds of methods and strategies that a study or experiment has run already."""


def without_numbers(tree: Any) -> Any:
    """Plain types with True and False for numbers: whether they are 0."""
    if isinstance(tree, dict):
        return {key: without_numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_numbers(value) for value in tree]
    return bool(tree) if isinstance(tree, int | float) else tree


# Studies


def images(n: int, side: int, channels: int, *, n_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Noise (n a class, y, x, c) with a bright stripe at the place of the class, and labels."""
    labels = np.repeat(np.arange(n_classes), n)
    pixels = np.random.default_rng(n).integers(0, 120, (len(labels), side, side, channels)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[side * label // n_classes : side * (label + 1) // n_classes] += 100
    return pixels, labels


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small image sets by the name of the set."""
    root = tmp_path_factory.mktemp("images")
    for name in ("mnist", "cifar10", "cifar100", "folder"):
        (root / name).mkdir()
    for part, n in (("train", N_TRAIN), ("t10k", N_TEST["mnist"])):
        pixels, labels = images(n, 28, 1)
        for what, array in (("images-idx3", pixels[..., 0]), ("labels-idx1", labels.astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (root / "mnist" / f"{part}-{what}-ubyte").write_bytes(head + array.tobytes())
    for name, n in (("data_batch_1", N_TRAIN), ("test_batch", N_TEST["cifar10"])):
        pixels, labels = images(n, 32, 3)
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        (root / "cifar10" / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels.tolist()}))
    for part, n in (("train", N_TRAIN), ("test", N_TEST["folder"])):
        for number, (pixels, label) in enumerate(zip(*images(n, 32, 3), strict=True)):
            (root / "folder" / part / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "folder" / part / str(label) / f"{number}.png")
    for name, n in (("train", N_TRAIN // 2), ("test", N_TEST["cifar100"])):
        pixels, labels = images(n, 32, 3, n_classes=100)
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        (root / "cifar100" / name).write_bytes(pickle.dumps({b"data": rows, b"fine_labels": labels.tolist()}))
    for part in ("train", "test"):
        found = sorted((root / "folder" / part).glob("*/*[05].png"))
        lines = [f"{path.relative_to(root / 'folder')} {path.parent.name}" for path in found]
        (root / "folder" / f"ImageNet_LT_{part}.txt").write_text("\n".join(lines))
        (root / "folder" / "ImageNet_LT_val.txt").write_text("\n".join(lines))
    for part in ("images_background", "images_evaluation"):
        for character in range(5):
            (root / "omniglot" / part / "Alphabet" / str(character)).mkdir(parents=True)
            for number, pixels in enumerate(images(5, 35, 1, n_classes=5)[0][character * 5 :][:5]):
                path = root / "omniglot" / part / "Alphabet" / str(character) / f"{number}.png"
                Image.fromarray(pixels[..., 0]).save(path)
    return {name: root / name for name in ("mnist", "cifar10", "cifar100", "folder", "omniglot")} | {
        "imagenet_lt": root / "folder"
    }


def smaller(settings: StudySettings) -> StudySettings:
    """A study with sets of 20 images of a common class and 5 of a rare one, one point and repeat of each
    distribution, few iterations; the first two methods, and those of a kind that no study has run with its
    network.
    """

    def one_point(distribution: Distribution) -> Distribution:
        few = {
            "rho": tuple(min(rho, 4.0) for rho in distribution.rho[:1]),
            "mu": distribution.mu[:1],
            "repeats": 1,
        }
        counts = (20, 5) if distribution.counts else None
        return Distribution.model_validate(distribution.model_dump() | few | {"counts": counts})

    def fewer(number: int, most: int) -> int:
        return min(number, most)

    knobs, is_large = settings.validation, settings.network.name in ("resnet10", "resnet32", "all_cnn")
    kinds = {
        name: f"{settings.network.name} {without_numbers(method.model_dump(mode='json'))}"
        for name, method in settings.methods.items()
    }
    chosen = [name for number, name in enumerate(kinds) if number < 2 or kinds[name] not in DONE]
    DONE.update(kinds.values())
    return settings.model_copy(
        update={
            "base": 20,
            "distributions": tuple(
                one_point(distribution) for distribution in settings.distributions[: 1 if is_large else None]
            ),
            "methods": {name: settings.methods[name].model_copy(update={"networks": 2}) for name in chosen},
            "search": settings.search.model_copy(update={"rates": settings.search.rates[:1], "runs": 1}),
            "training": settings.training.model_copy(
                update={"iterations": 2 if is_large else 4, "batch_size": 2 if is_large else 8}
            ),
            "validation": knobs.model_copy(
                update={
                    "held_out": fewer(knobs.held_out, 5),
                    "per_class": fewer(knobs.per_class, 1 if is_large else 5),
                    "every": 2,
                }
            ),
            "record": settings.record.model_copy(
                update={"curve_every": fewer(settings.record.curve_every, 2), "auc_resamples": 2}
            ),
        }
    )


@pytest.mark.parametrize("name", config_names("studies"))
def test_every_study_runs_to_its_figures(
    name: str, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_values = 32 * 32 * 3
    even = Whitening(np.zeros(n_values, np.float32), np.eye(n_values, dtype=np.float32))
    monkeypatch.setattr(whitening, "fit_whitening", lambda flat: even)  # its fit takes half a minute
    settings = load_study(name)
    if not isinstance(settings, StudySettings):
        check_own_grid(settings, sets[settings.images.name], tmp_path)
        return
    settings = smaller(settings)
    report = run_study(
        settings, tmp_path, folder=sets[settings.images.name], on=GridWorkers(n=1, device="cpu")
    )
    assert report.failed == ()
    figures = draw_figures(tmp_path)
    assert figures
    assert all(path.stat().st_size > A_DRAWN_FIGURE for path in figures)
    assert all(path.is_file() for path in write_table(study_table(tmp_path), tmp_path))
    if name == "cifar2":
        assert "two_class_loss.png" in [path.name for path in figures]


def check_own_grid(settings: OwnGrid, folder: Path, out: Path) -> None:
    """Run a study with a grid of its own in small."""
    tree = settings.model_dump() | {"repeats": 1, "training": {"iterations": 2, "batch_size": 8}}
    if settings.study == "novelty":
        detector = {"iterations": 2, "batch_size": 8, "width": 4, "code": 4}
        few = {"base": 20, "rho": [5, 20], "pairs": settings.pairs[:2], "detector": detector}
    else:
        few = {"shots": [1, 2], "queries": 1, "episodes": 4, "draws": 2, "width": 4, "memory_iterations": 2}
        few["train_queries"] = 1
    small = type(settings).model_validate(tree | few)
    report = run_own_grid(small, out, folder=folder, on=GridWorkers(n=1, device="cpu"))
    assert report.failed == ()
    assert all(path.stat().st_size > A_DRAWN_FIGURE for path in draw_own_figures(out))
    text, paths = write_own_table(out)
    assert all(path.is_file() for path in paths)
    assert "| oversampling |" in text


# Experiments


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of experiments that make their own: equal cohorts are made once."""
    return tmp_path_factory.mktemp("cohorts")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of two cases, with the four classes of 2021, which regions can be trained on."""
    root = tmp_path_factory.mktemp("bank")
    write_cohort(root / "scans", n_cases=6, layout="brats2021", size=SIZE, seed=1)
    assert (
        pipeline.preprocess(
            root / "scans", root / "bank", workers=1, options=BuildOptions(n_folds=3)
        ).exit_code
        == 0
    )
    return root / "bank"


SMALL: dict[str, Any] = {
    "training.epochs": 2,
    "training.steps": 2,
    "training.batch_size": 4,
    "training.threads": 1,
    "training.checkpoint_epochs": 2,
    "validation.every": 2,
}


def kind_of(strategy: Strategy) -> str:
    """What a strategy does, whatever its numbers are."""
    return repr([without_numbers(config.model_dump(mode="json")) for config in strategy.configs])


def fitting(patch: list[int]) -> list[int]:
    """A patch that the small scans have room for."""
    return [16, 32, 32][-len(patch) :]


def small_experiment(name: str) -> ExperimentConfig:
    """Tiny networks, steps of one batch, one fold: the first strategy, and those of a kind that no experiment
    has run.
    """
    config = load_experiment(name)
    given = {
        key: {knob: value for knob, value in knobs.items() if knob not in SMALL}
        for key, knobs in config.strategies.items()
    }
    # A strategy that is set apart by its budget alone is another's double here.
    given = {
        key: knobs
        for number, (key, knobs) in enumerate(given.items())
        if knobs not in [*given.values()][:number]
    }
    tiny = {"network.channels": [4, 4, 4, 4, 4, 4], "patch.size": [32, 32]}
    every = config.every | SMALL | ({} if "network" in config.every else tiny)
    first, *_, last = [*config.predict.correct_priors, config.predict.correct_priors[-1]]
    few = config.predict.model_copy(
        update={
            "correct_priors": tuple(dict.fromkeys((first, last))),
            "looks": min(config.predict.looks, SMALL["training.epochs"]),
        }
    )
    config = config.model_copy(update={"every": every, "strategies": given, "predict": few})
    chosen = []
    for number, strategy in enumerate(
        make_strategies(config.model_copy(update={"against": None, "pictures": None}))
    ):
        if number < 1 or kind_of(strategy) not in DONE:
            chosen.append(strategy)
        DONE.add(kind_of(strategy))
    for strategy in chosen:
        if "patch.size" in given[strategy.name]:
            given[strategy.name]["patch.size"] = fitting(given[strategy.name]["patch.size"])
    labels = {label for strategy in chosen for label in strategy.labels}
    cohorts = list(config.phantoms.items())
    return config.model_copy(
        update={
            "strategies": {strategy.name: given[strategy.name] for strategy in chosen},
            "against": config.against if config.against in labels else None,
            "pictures": None
            if config.pictures is None
            else tuple(label for label in config.pictures if label in labels),
            "phantoms": {
                key: cohort.model_copy(update={"size": SIZE, "cases": 6})
                for key, cohort in [*cohorts[:1], *cohorts[3:4]]
            },
            "folds": (0,),
            "seeds": config.seeds[:1],
        }
    )


@pytest.mark.parametrize("name", config_names("experiments"))
def test_every_experiment_runs_to_its_page(name: str, bank: Path, cohorts: Path, tmp_path: Path) -> None:
    config = small_experiment(name)
    report = run_experiment(
        cohorts if config.phantoms else bank, tmp_path / "out", config, on=GridWorkers(n=1, device="cpu")
    )
    assert report.grid.failed == ()
    assert {variant["strategy"] for variant in report.summary["variants"]} == set(config.strategies)
    assert report.page.stat().st_size > 50_000
