"""Which remedies are tried, which is named, how sure, and that the test images are never looked at."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from brats_seg.classification.settings import StudySettings
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.loss import Loss
from brats_seg.core.settings import config_names, load_settings, parse_settings
from brats_seg.studies import advice
from brats_seg.studies.advice import (
    Advice,
    Choice,
    Choices,
    advise_on_images,
    advise_on_scans,
    rank_remedies,
    recommended,
)
from brats_seg.training.remedies import load_recipe, remedy_names

ROOT = Path(__file__).parents[2]
NPZ = parse_settings(StudySettings, {"images": {"name": "npz"}})


def test_a_remedy_that_is_right_more_often_is_first_and_sure() -> None:
    """60 images of a common class that both know, 20 of a rare one: the second remedy knows 15, the first 5.
    Balanced accuracy is (1 + 0.25) / 2 and (1 + 0.75) / 2.
    """
    right = np.ones((80, 2))
    right[65:, 0], right[75:, 1] = 0, 0
    first, second = rank_remedies(("weak", "good"), right, groups=np.repeat([0, 1], [60, 20]))
    assert (first.name, first.score, second.score) == ("good", 0.875, 0.625)
    assert first.best > 0.99
    assert first.interval[0] < 0.875 < first.interval[1]


def test_two_equal_remedies_are_each_best_in_half() -> None:
    right = np.repeat([[1.0], [0.0]], 10, axis=0).repeat(2, axis=1)
    tried = rank_remedies(("one", "other"), right, groups=np.zeros(20, np.int64))
    assert [one.best for one in tried] == [0.5, 0.5]


@pytest.mark.parametrize("wing", config_names("advice"))
def test_what_is_recommended_are_five_remedies_for_the_wing(wing: str) -> None:
    for choice in load_settings(Choices, wing, shelf="advice").choices:
        assert len(set(choice.remedies)) == 5
        assert set(choice.remedies) <= set(remedy_names())
        for name in choice.remedies if wing == "scans" else ():
            assert load_recipe(name).committee is load_recipe(name).synthesizer is None


def kind_of(name: str) -> str:
    """What a remedy changes: the output layer, the number of networks, the images, the loss or the draw."""
    recipe = load_recipe(name)
    parts = {
        "classifier": recipe.classifier, "second phase": recipe.phases, "committee": recipe.committee,
        "images": recipe.synthesizer or recipe.mix, "loss": recipe.loss != Loss(),
    }  # fmt: skip
    return next((kind for kind, part in parts.items() if part), "draw")


def test_what_is_recommended_for_images_is_the_best_of_each_kind() -> None:
    """Of two within the interval of 0.8 points, the one that trains fewer networks."""
    table = pd.read_csv(ROOT / "docs" / "experiments" / "data" / "mnist_remedies.csv")
    table = table[(table["decision"] == "argmax") & (table["method"] != "baseline")]
    for choice in load_settings(Choices, "images", shelf="advice").choices:
        path, rho = choice.rows.split(", rho ")
        assert path == "docs/experiments/data/mnist_remedies.csv"
        means = table[table["rho"] == int(rho)].groupby("method")["balanced_accuracy"].mean()
        kinds = [kind_of(name) for name in choice.remedies]
        assert sorted(kinds) == ["classifier", "committee", "draw", "loss", "second phase"]
        for kind, name in zip(kinds, choice.remedies, strict=True):
            best = max(means[other] for other in means.index if kind_of(other) == kind)
            assert means[name] > best - 0.008


def test_the_ratio_of_the_class_counts_decides() -> None:
    first, last = load_settings(Choices, "images", shelf="advice").choices
    assert recommended("images", np.array([1000, 10, 0])) == first
    assert recommended("images", np.array([10, 100_000])) == last


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright stripes at the place of the class, 60 and 6 of them; the test images are noise."""
    labels = np.repeat([0, 1], [60, 6])
    pixels = np.random.default_rng(0).integers(0, 60, (66, 20, 20), dtype=np.uint8)
    pixels[np.arange(66)[:, None], labels[:, None] * 10 + np.arange(4)] += 150
    noise = np.random.default_rng(1).integers(0, 255, (4, 20, 20), dtype=np.uint8)
    path = tmp_path_factory.mktemp("images") / "stripes.npz"
    np.savez(
        path, train_images=pixels, train_labels=labels, test_images=noise, test_labels=np.array([0, 1, 0, 1])
    )
    return path


def test_images_are_advised_on_without_a_look_at_the_test_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "time_iterations", lambda *_, **__: (90.0, 0.0))
    said: list[str] = []
    out = tmp_path / "new" / "out"
    found = advise_on_images(NPZ, images, out, minutes=1.0, say=said.append)
    assert {one.name for one in found.tried} == {
        "baseline",
        *recommended("images", np.array([60, 6])).remedies,
    }
    assert found.tried[0].score > 0.9  # of noise it would be one half
    assert "6 remedies x 3 inner splits" in said[-1]
    page = found.page.read_text()
    assert found.lines()[0] in page
    assert found.command in page
    full = load_settings(StudySettings, out / "full.yaml")
    assert full.distributions[0].kind == "natural"
    assert found.tried[0].name in full.methods


def test_a_remedy_that_the_images_cannot_have_is_left_out(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images of the rare class: an inner split trains on one of them, and SMOTE needs a neighbor."""
    with np.load(images) as arrays:
        few = {name: values[:62] if name.startswith("train") else values for name, values in arrays.items()}
    np.savez(tmp_path / "few.npz", **few)
    monkeypatch.setattr(advice, "time_iterations", lambda *_, **__: (300.0, 0.0))
    choice = Choice(remedies=("smote", "oversample"), rows="a test")
    monkeypatch.setattr(advice, "recommended", lambda *_: choice)
    said: list[str] = []
    found = advise_on_images(NPZ, tmp_path / "few.npz", tmp_path, minutes=1.0, say=said.append)
    assert {one.name for one in found.tried} == {"baseline", "oversample"}
    assert said[-1].startswith("left out: smote: SMOTE: a class with 1 image has no neighbor")
    assert said[-1].removeprefix("left out: ") in found.page.read_text()
    assert "not sure" in found.lines()[0]
    assert "of 2 images of a class alone" in found.lines()[0]


def test_a_remedy_that_is_always_the_best_of_a_few_cases_is_not_sure() -> None:
    tried = rank_remedies(("weak", "good"), np.array([[0.5, 0.6]] * 5), groups=np.zeros(5, np.int64))
    first, _ = Advice(tried, Path("page"), "run", "5 inner cases", True).lines()
    assert first == (
        "Use good, but this is not sure: it is the best in 100% of 1,000 resamples, of 5 inner cases alone."
    )
    first, _ = Advice(tried, Path("page"), "run", "6 inner cases", False).lines()
    assert first == "Use good: the best in 100% of 1,000 resamples."


@pytest.mark.parametrize("minutes", [0.5, 0.0, float("nan"), float("inf")])
def test_less_than_a_minute_is_refused_before_anything_is_read(minutes: float, tmp_path: Path) -> None:
    absent, out = tmp_path / "absent", tmp_path / "out"
    with pytest.raises(UsageError, match=r"--minutes .*: a budget of at least 1 minute"):
        advise_on_images(NPZ, absent, out, minutes=minutes)
    with pytest.raises(UsageError, match=r"--minutes .*: a budget of at least 1 minute"):
        advise_on_scans(absent, out, minutes=minutes)
    assert not out.exists()


def test_a_budget_that_is_too_small_is_refused_with_one_that_is_not(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "time_iterations", lambda *_, **__: (1000.0, 1000.0))
    with pytest.raises(UsageError, match=r"fewer than 20 show nothing; give \d+ minutes or more"):
        advise_on_images(NPZ, images, tmp_path, minutes=1.0)


def test_a_class_of_one_patient_cannot_be_split(tmp_path: Path) -> None:
    labels, patients = np.array([0] * 6 + [1] * 3), np.array([0, 0, 1, 1, 2, 2, 3, 3, 3])
    images = {
        "train_images": np.zeros((9, 20, 20), np.uint8),
        "train_labels": labels,
        "train_patients": patients,
    }
    np.savez(tmp_path / "one.npz", **images, test_images=np.zeros((2, 20, 20), np.uint8), test_labels=[0, 1])
    with pytest.raises(InputError, match=r"class '1' has 1 training patient\(s\); an inner split needs 2"):
        advise_on_images(NPZ, tmp_path / "one.npz", tmp_path / "out", minutes=5.0)


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"train_labels": np.array([0, 0, 1]), "test_labels": np.array([0, 1])}
    arrays = {f"{part}_images": np.zeros((n, 20, 20), np.uint8) for part, n in (("train", 3), ("test", 2))}
    np.savez(tmp_path / "one.npz", **parts, **arrays)
    with pytest.raises(InputError, match=r"class '1' has 1 training image\(s\); an inner split needs 2"):
        advise_on_images(NPZ, tmp_path / "one.npz", tmp_path / "out", minutes=5.0)
