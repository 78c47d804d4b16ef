from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.errors import InputError
from brats_seg.evaluation.scores import score_case
from brats_seg.inference.cleanup import Cleanup, clean_up
from brats_seg.inference.dense import label_map
from brats_seg.inference.segmenter import Segmenter
from brats_seg.inference.tuning import COMPONENTS_MM3, ENHANCING_MM3, Tuning, read_tuning, tune_settings, write_tuning
from brats_seg.scans.case import MODALITIES
from brats_seg.scans.labels import REGIONS

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
SHAPE = (8, 20, 20)
SEGMENTER = Segmenter(nn.Identity(), MODALITIES, CLASSES)
"""The four channels are the logits of the four classes."""


class SmallBank(PatchBank):
    """Cases in memory, all selected."""

    def __init__(self, pairs: list[tuple[np.ndarray, np.ndarray]], *, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        self.pairs = pairs
        self.classes = CLASSES
        self.selected = tuple(range(len(pairs)))
        self.cases = tuple(SimpleNamespace(spacing_mm=spacing_mm) for _ in pairs)

    def volume(self, case: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[case]


def image_of(labels: np.ndarray, *, logit: float = 4.0) -> np.ndarray:
    """A brain everywhere, segmented as `labels`."""
    return (0.25 + logit * np.eye(4)[labels]).astype(np.float16)


def tumor() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 4:12, 4:12] = 2
    labels[3:5, 6:10, 6:10] = 1
    return labels


def test_a_perfect_network_is_left_alone():
    labels = tumor()
    labels[3, 7:9, 7:9] = 3
    tuning = tune_settings(SEGMENTER, SmallBank([(image_of(labels), labels)]), shifts={0.0: None, 1.0: (0.0, -9.0, 0.0, 0.0)}, epoch=3)
    assert (tuning.correct_priors, tuning.cleanup, tuning.score, tuning.score_before) == (0.0, Cleanup(), 1.0, 1.0)
    assert (tuning.epoch, tuning.n_cases) == (3, 1)


def test_false_specks_and_a_little_false_enhancing_core_are_found_out():
    seen = tumor()
    seen[7, 17:19, 17:19] = 2  # a speck of 4
    seen[3, 7, 7:10] = 3  # 3 voxels, where the reference has none
    outside = np.where(tumor() == 0, 255, tumor()).astype(np.uint8)  # voxels outside the brain count as healthy
    tuning = tune_settings(SEGMENTER, SmallBank([(image_of(seen), outside)]), shifts={0.0: None}, epoch=1)
    assert (tuning.correct_priors, tuning.cleanup) == (0.0, Cleanup(10.0, 20.0))
    assert tuning.score == 1.0
    assert tuning.score_before < 0.67  # active has a Dice of 0


def test_a_network_that_says_tumor_too_often_is_corrected():
    reference = tumor()
    doubtful = image_of(reference)
    doubtful[:, 12:18, 5:9] = [0.25, 0.25, 1.25, 0.25]  # edema by a logit of 1, grown onto the tumor
    shifts = {s: None if s == 0 else (0.0, 0.0, -4 * s, 0.0) for s in (0.0, 0.2, 0.3, 0.9, 1.0)}
    tuning = tune_settings(SEGMENTER, SmallBank([(doubtful, reference)]), shifts=shifts, epoch=1)
    assert (tuning.correct_priors, tuning.score) == (0.3, 1.0)


def direct_score(bank: SmallBank, shift: tuple[float, ...] | None, cleanup: Cleanup, spacing_mm: tuple[float, float, float]) -> float:
    """As `predict` and `evaluate` would have it."""
    dice = []
    for image, reference in bank.pairs:
        labels = label_map(nn.Identity(), image, class_shift=shift)
        cleaned = clean_up(labels, classes=CLASSES, spacing_mm=spacing_mm, cleanup=cleanup)
        scores = score_case(reference, cleaned, classes=CLASSES, spacing_mm=spacing_mm, tissues=False)
        dice.append(np.mean([s.dice for s in scores if s.region in REGIONS]))
    return float(np.mean(dice))


def test_the_score_is_that_of_predict_and_no_setting_has_a_better_one():
    random, spacing_mm = np.random.default_rng(5), (2.0, 1.0, 1.5)
    pairs = []
    for _ in range(2):
        reference = np.where(random.random(SHAPE) < 0.02, random.integers(0, 4, SHAPE), tumor()).astype(np.uint8)
        pairs.append(((image_of(tumor(), logit=1.0) + random.normal(0, 0.35, (*SHAPE, 4))).astype(np.float16), reference))
    bank = SmallBank(pairs, spacing_mm=spacing_mm)
    shifts = {0.0: None, 0.5: (0.2, -0.1, 0.1, -0.3)}
    tuning = tune_settings(SEGMENTER, bank, shifts=shifts, epoch=1)
    every = {
        setting: direct_score(bank, shifts[setting[0]], Cleanup(*setting[1:]), spacing_mm)
        for setting in product(shifts, COMPONENTS_MM3, ENHANCING_MM3)
    }
    assert tuning.score == pytest.approx(max(every.values()), abs=1e-6)
    assert tuning.score == pytest.approx(every[tuning.correct_priors, tuning.min_component_mm3, tuning.min_enhancing_mm3], abs=1e-6)
    assert tuning.score_before == pytest.approx(every[0.0, 0.0, 0.0], abs=1e-6)


def test_without_clean_up_the_strength_is_the_best_for_maps_as_they_are():
    reference = tumor()
    doubtful = image_of(reference)
    doubtful[:, 12:18, 5:9] = [0.25, 0.25, 1.25, 0.25]
    doubtful[0, 0, 0] = [0.0, 0.0, 9.0, 0.0]  # a speck that no correction takes away
    shifts = {s: None if s == 0 else (0.0, 0.0, -4 * s, 0.0) for s in (0.0, 0.3)}
    tuning = tune_settings(SEGMENTER, SmallBank([(doubtful, reference)]), shifts=shifts, epoch=1, cleanup=False)
    assert (tuning.correct_priors, tuning.cleanup) == (0.3, Cleanup(0.0, 0.0))
    direct = direct_score(SmallBank([(doubtful, reference)]), shifts[0.3], Cleanup(0.0, 0.0), (1.0, 1.0, 1.0))
    assert tuning.score == pytest.approx(direct, abs=1e-6)


def test_settings_come_back_from_the_file_and_only_for_their_checkpoint(tmp_path):
    tuning = Tuning(
        correct_priors=0.3, min_component_mm3=50, min_enhancing_mm3=200, epoch=7, checkpoint="ab", n_cases=4, score=0.8, score_before=0.7
    )
    path = write_tuning(tmp_path, tuning)
    assert read_tuning(tmp_path, checkpoint="ab") == tuning
    assert "correct_priors: 0.3" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.yaml"]
    with pytest.raises(InputError, match=r"tuned\.yaml: found for a checkpoint of epoch 7 that is not the run's best any more"):
        read_tuning(tmp_path, checkpoint="cd")  # trained again, to the same epoch
    for text in ("correct_priors: 0.3", "{", "- 1"):
        path.write_text(text)
        with pytest.raises(InputError, match="not settings as `brats-seg tune` writes them"):
            read_tuning(tmp_path, checkpoint="ab")
    path.unlink()
    with pytest.raises(InputError, match="not there; `brats-seg tune"):
        read_tuning(tmp_path, checkpoint="ab")


def test_a_case_without_tumor_and_without_a_finding_counts_1():
    nothing = np.zeros(SHAPE, np.uint8)
    tuning = tune_settings(SEGMENTER, SmallBank([(image_of(nothing), nothing)]), shifts={0.0: None}, epoch=1)
    assert (tuning.cleanup, tuning.score) == (Cleanup(), 1.0)
