"""Three sets that the tables of `advise` were not made on, and whether its first pick holds there.

    python tools/advice_trial.py sets OUT --mnist FOLDER --cifar10 FOLDER
    brats-seg study run OUT/SET.yaml OUT/SET/full --images OUT/SET.npz  (for each SET: every remedy, 5 seeds)
    brats-seg study advise OUT/SET.npz OUT/SET/advice --minutes 5  (for each SET)
    python tools/advice_trial.py table OUT

The sets: airplanes (2,000 airplanes, 20 automobiles; 1,000 test images), digits (800 images of seven
digits, 10 of the digits 3, 5 and 8; 2,000 test images) and tail (CIFAR-10, 500 down to 5 images; 1,000 test
images). `table` prints, for each set, the balanced accuracy of the best remedy with its 95 % interval over
the seeds (Student's t), and that of the remedy that `advise` picked.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student
from yaml import safe_dump

from brats_seg.classification.image_set import ImageSet, Splits
from brats_seg.classification.images import load_images
from brats_seg.studies.advice import PAGE
from brats_seg.studies.study import study_rows
from brats_seg.training.remedies import load_recipe, remedy_names

SETS = ("airplanes", "digits", "tail")
N_SEEDS = 5
LEFT_OUT = ("balanced_softmax", "tversky", "focal_tversky", "unified_focal")
"""The first is the same network as logit_adjusted; the others are for scans."""


def pick(images: ImageSet, counts: list[int], *, skip: int = 0) -> np.ndarray:
    """Places of the first images of each class, after `skip`."""
    of_class = [np.flatnonzero(images.labels == k)[skip : skip + n] for k, n in enumerate(counts)]
    return np.concatenate(of_class)


def write_set(path: Path, train: ImageSet, test: ImageSet) -> None:
    """One .npz as `study advise` reads it."""
    np.savez_compressed(
        path, train_images=train.images, train_labels=train.labels,
        test_images=test.images, test_labels=test.labels,
    )  # fmt: skip


def write_sets(out: Path, *, digits: Splits, objects: Splits, two: Splits) -> None:
    """The three sets, and the study of all remedies."""
    few = {3, 5, 8}
    rare_digits = [10 if k in few else 800 for k in range(10)]
    write_set(
        out / "digits.npz",
        digits.train.take(pick(digits.train, rare_digits)),
        digits.test.take(pick(digits.test, [200] * 10)),
    )
    tail = [int(500 * 100 ** (-k / 9)) for k in range(10)]
    write_set(out / "tail.npz", objects.train.take(pick(objects.train, tail)), objects.test)
    both = [500, 500]
    write_set(
        out / "airplanes.npz",
        two.train.take(pick(two.train, [2000, 20])),
        two.train.take(pick(two.train, both, skip=2000)),
    )
    for name in SETS:
        write_study(out / f"{name}.yaml", network="lenet5" if name == "digits" else "two_class")


def write_study(path: Path, *, network: str) -> None:
    """Every remedy for images on a set as it is."""
    recipes = {name: load_recipe(name) for name in remedy_names() if name not in LEFT_OUT}
    methods = {name: {"networks": 2} if recipe.committee else {} for name, recipe in recipes.items()}
    study = {
        "images": {"name": "npz"}, "base": None, "distributions": [{"kind": "natural"}], "repeats": N_SEEDS,
        "methods": methods, "network": {"name": network},
        "optimizer": {"kind": "adam", "lr": 0.001, "weight_decay": 0.0, "schedule": "constant"},
        "training": {"iterations": 300, "batch_size": 64},
    }  # fmt: skip
    path.write_text(safe_dump(study, sort_keys=False))


def score_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean balanced accuracy of each method over its seeds, and the half width of its 95 % interval; the best
    method first."""
    grouped = rows.groupby("method")["balanced_accuracy"]
    table = pd.DataFrame({"mean": grouped.mean(), "n": grouped.count(), "sd": grouped.std()})
    table["half"] = student.ppf(0.975, table["n"] - 1) * table["sd"] / np.sqrt(table["n"])
    return table.sort_values("mean", ascending=False)


def read_rows(folder: Path) -> pd.DataFrame:
    """The rows of the test images, decided by the largest probability."""
    rows = pd.DataFrame(study_rows(folder))
    return rows[(rows["part"] == "test") & (rows["decision"] == "argmax")]


def print_table(out: Path) -> None:
    """A line for each set."""
    print("| set | best of all, 5 seeds | first pick | its score | place | within the interval |")
    print("|---|---|---|---|---|---|")
    for name in SETS:
        table = score_table(read_rows(out / name / "full"))
        page = (out / name / "advice" / PAGE).read_text()
        (picked,) = re.findall(r"^Use (\w+)", page, flags=re.MULTILINE)
        best, own = table.iloc[0], table.loc[picked]
        low, high = best["mean"] - best["half"], best["mean"] + best["half"]
        place = int((table["mean"] > own["mean"]).sum()) + 1
        print(
            f"| {name} | `{table.index[0]}` {best['mean']:.3f} ({low:.3f} to {high:.3f}) | `{picked}` "
            f"| {own['mean']:.3f} | {place} of {len(table)} | {'yes' if own['mean'] >= low else 'no'} |"
        )


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sets", "table"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cifar10", type=Path)
    given = parser.parse_args()
    if given.what == "table":
        print_table(given.out)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    objects = load_images("cifar10", given.cifar10)
    two = load_images("cifar10", given.cifar10, classes=("airplane", "automobile"))
    write_sets(given.out, digits=load_images("mnist", given.mnist), objects=objects, two=two)


if __name__ == "__main__":
    main()
