from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.errors import InputError, UsageError
from brats_seg.evaluation.scores import score_case
from brats_seg.inference.decisions import Cleanup, RegionThresholds, clean_up, cut_regions
from brats_seg.inference.dense import brain_mask, class_probabilities, most_likely
from brats_seg.inference.options import Settings, Tuning, read_tuning, write_tuning
from brats_seg.inference.segmenter import Segmenter
from brats_seg.scans.case import MODALITIES
from brats_seg.scans.labels import REGIONS
from brats_seg.training import tuning
from brats_seg.training.tuning import KNOBS, search, see_cases

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
SHAPE = (8, 20, 20)
SEGMENTER = Segmenter(nn.Identity(), MODALITIES, CLASSES)
"""The four channels are the logits of the four classes."""


class SmallBank(PatchBank):
    """Cases in memory, all selected."""

    def __init__(
        self,
        pairs: list[tuple[np.ndarray, np.ndarray]],
        *,
        spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        self.pairs = pairs
        self.classes = CLASSES
        self.selected = tuple(range(len(pairs)))
        self.cases = tuple(
            SimpleNamespace(id=f"c{i}", patient=f"p{i}", spacing_mm=spacing_mm) for i in range(len(pairs))
        )

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


def found(bank: SmallBank, *, shifts=None, **how):
    """The settings for a network whose channels are the logits of the classes, and how they were found."""
    return search(list(see_cases(SEGMENTER, bank, shifts=shifts or {0.0: None})), **how)


def test_a_perfect_network_is_left_alone():
    labels = tumor()
    labels[3, 7:9, 7:9] = 3
    settings, how = found(
        SmallBank([(image_of(labels), labels)] * 3), shifts={0.0: None, 1.0: (0.0, -9.0, 0.0, 0.0)}
    )
    assert settings == Settings()
    assert (how["score"], how["score_before"], how["n_cases"], how["notes"]) == (1.0, 1.0, 3, ())


def specked() -> tuple[np.ndarray, np.ndarray]:
    """A false speck of 4 voxels, and 3 false voxels of enhancing core; voxels outside the brain (255) count
    as healthy.
    """
    seen = tumor()
    seen[7, 17:19, 17:19] = 2
    seen[3, 7, 7:10] = 3
    return image_of(seen), np.where(tumor() == 0, 255, tumor()).astype(np.uint8)


def test_false_specks_and_a_little_false_enhancing_core_are_found_out():
    settings, how = found(SmallBank([specked()] * 3))
    assert settings == Settings(min_component_mm3=10.0, min_active_component_mm3=10.0)
    assert how["score"] == 1.0
    assert how["score_before"] < 0.67  # active has a Dice of 0
    low, high = how["gain_interval95"]
    assert low == pytest.approx(how["score"] - how["score_before"], abs=2e-6)  # the three cases are alike
    assert low == pytest.approx(high)


@pytest.mark.parametrize("n", [1, 2])
def test_of_too_few_patients_no_threshold_is_taken_over_and_that_is_said(n):
    settings, how = found(SmallBank([specked()] * n))
    assert settings == Settings()
    assert how["score"] == how["score_before"]
    assert f"({n} of the 3 required patients): not taken over" in how["notes"][0]


def test_further_scans_of_one_patient_are_no_further_patients():
    bank = SmallBank([specked()] * 4)
    bank.cases = tuple(
        SimpleNamespace(**{**vars(case), "patient": f"p{i % 2}"}) for i, case in enumerate(bank.cases)
    )
    settings, how = found(bank)
    assert (settings, how["n_patients"]) == (Settings(), 2)


def test_a_gain_that_one_patient_makes_alone_is_not_taken_over():
    """The first of five patients gains, the others have nothing to lose or to gain: the interval reaches
    0.
    """
    perfect = (image_of(tumor()), tumor())
    settings, how = found(SmallBank([specked(), *[perfect] * 4]))
    assert settings == Settings()
    assert "min_component_mm3 10 would raise the score by" in how["notes"][0]
    assert "(95 % interval 0.0000 to" in how["notes"][0]


def test_a_network_that_says_tumor_too_often_is_corrected():
    reference = tumor()
    doubtful = image_of(reference)
    doubtful[:, 12:18, 5:9] = [0.25, 0.25, 1.25, 0.25]  # edema by a logit of 1, grown onto the tumor
    shifts = {s: None if s == 0 else (0.0, 0.0, -4 * s, 0.0) for s in (0.0, 0.2, 0.3, 0.9, 1.0)}
    settings, how = found(SmallBank([(doubtful, reference)]), shifts=shifts)
    assert (settings, how["score"]) == (Settings(correct_priors=0.3), 1.0)


def test_a_network_that_says_tumor_too_seldom_gets_a_lower_threshold():
    """P(edema) is 0.44 where the edema is faint and P(healthy) 0.46: the likeliest class misses what
    P(whole), 0.54, tells.
    """
    reference = tumor()
    shy = image_of(reference)
    shy[2, 4:12, 4:12] = np.log([0.46, 0.05, 0.44, 0.05])
    settings, how = found(SmallBank([(shy, reference)] * 3))
    assert settings == Settings(threshold_whole=0.5)  # P(whole) is 0.54
    assert how["score"] == 1.0


def test_lesions_can_be_what_is_raised():
    """A speck costs little Dice and a whole lesion: of one true lesion and one false, lesion-wise Dice is
    0.5.
    """
    seen = tumor()
    seen[7, 17:19, 17:19] = 2
    bank = SmallBank([(image_of(seen), tumor())] * 3)
    settings, how = found(bank, objective="lesion_dice")
    assert (settings, how["score_before"], how["score"]) == (Settings(min_component_mm3=10.0), 0.5, 1.0)


def as_predicted(
    image: np.ndarray, shift: tuple[float, ...] | None, settings: Settings, spacing_mm: tuple[float, ...]
) -> np.ndarray:
    """The label map that `predict` writes: its own steps, on the whole image."""
    probabilities, brain = class_probabilities(nn.Identity(), image, class_shift=shift), brain_mask(image)
    labels = cut_regions(
        most_likely(probabilities, brain), probabilities, classes=CLASSES, thresholds=settings.thresholds
    )
    return clean_up(
        np.where(brain, labels, np.uint8(0)), classes=CLASSES, spacing_mm=spacing_mm, cleanup=settings.cleanup
    )


def direct_score(
    bank: SmallBank, shift: tuple[float, ...] | None, settings: Settings, spacing_mm: tuple[float, ...]
) -> float:
    """As `predict` and `evaluate` would have it."""
    dice = []
    for image, reference in bank.pairs:
        cleaned = as_predicted(image, shift, settings, spacing_mm)
        scores = score_case(reference, cleaned, classes=CLASSES, spacing_mm=spacing_mm, tissues=False)
        dice.append(np.mean([s.dice for s in scores if s.region in REGIONS]))
    return float(np.mean(dice))


def noisy_bank(spacing_mm: tuple[float, float, float], n: int = 4) -> SmallBank:
    random, pairs = np.random.default_rng(5), []
    for _ in range(n):
        reference = np.where(random.random(SHAPE) < 0.02, random.integers(0, 4, SHAPE), tumor()).astype(
            np.uint8
        )
        image = (image_of(tumor(), logit=1.0) + random.normal(0, 0.35, (*SHAPE, 4)) + (0.5, 0, 0, 0)).astype(
            np.float16
        )
        image[0] = 0  # outside the brain
        pairs.append((image, reference))
    return SmallBank(pairs, spacing_mm=spacing_mm)


def test_the_score_is_that_of_predict_and_evaluate():
    spacing_mm = (2.0, 1.0, 1.5)
    bank, shifts = noisy_bank(spacing_mm), {0.0: None, 0.5: (0.2, -0.1, 0.1, -0.3)}
    settings, how = found(bank, shifts=shifts)
    assert settings.cleanup != Cleanup()
    assert how["score"] == pytest.approx(
        direct_score(bank, shifts[settings.correct_priors], settings, spacing_mm), abs=1e-6
    )
    assert how["score_before"] == pytest.approx(direct_score(bank, None, Settings(), spacing_mm), abs=1e-6)
    assert how["score"] > how["score_before"]


def test_every_value_of_every_knob_is_scored_as_predict_would_have_it():
    """What is stored of a case suffices for all of them."""
    spacing_mm = (1.0, 1.0, 1.0)
    bank = noisy_bank(spacing_mm, n=1)
    shift = (0.2, -0.1, 0.1, -0.3)
    (case,) = see_cases(SEGMENTER, bank, shifts={0.0: None, 0.5: shift})
    for knob, values in KNOBS.items():
        for value in values:
            settings = replace(
                Settings(correct_priors=0.5, min_component_mm3=20.0, threshold_core=0.3), **{knob: value}
            )
            stored = tuning._score(case, settings, "dice")
            assert stored == pytest.approx(direct_score(bank, shift, settings, spacing_mm), abs=1e-6), (
                settings
            )


def test_without_clean_up_the_strength_is_the_best_for_maps_as_they_are():
    reference = tumor()
    doubtful = image_of(reference)
    doubtful[:, 12:18, 5:9] = [0.25, 0.25, 1.25, 0.25]
    doubtful[0, 0, 0] = [0.0, 0.0, 9.0, 0.0]  # a speck that no correction takes away
    shifts = {s: None if s == 0 else (0.0, 0.0, -4 * s, 0.0) for s in (0.0, 0.3)}
    settings, how = found(SmallBank([(doubtful, reference)] * 3), shifts=shifts, cleanup=False)
    assert (settings, how["notes"]) == (Settings(correct_priors=0.3), ())
    direct = direct_score(SmallBank([(doubtful, reference)]), shifts[0.3], Settings(), (1.0, 1.0, 1.0))
    assert how["score"] == pytest.approx(direct, abs=1e-6)


def test_cases_of_several_runs_are_pooled_each_with_the_priors_of_its_own():
    """The second network needs what the first does not: only the sum of three patients decides."""
    runs = [SmallBank([specked()] * 2), SmallBank([specked()])]
    runs[1].cases = (
        SimpleNamespace(id="c0", patient="p9", spacing_mm=(1.0, 1.0, 1.0)),
    )  # of one name with a case of the first run
    cases = [
        case
        for run, bank in enumerate(runs)
        for case in see_cases(SEGMENTER, bank, shifts={0.0: None}, run=run)
    ]
    settings, how = search(cases)
    assert (how["n_cases"], how["n_patients"], how["n_runs"]) == (3, 3, 2)
    assert settings.min_component_mm3 == 10.0


def test_settings_come_back_from_the_file_and_only_for_their_checkpoint(tmp_path):
    written = Tuning(
        correct_priors=0.3,
        min_component_mm3=50,
        min_enhancing_mm3=200,
        threshold_core=0.4,
        epoch=7,
        checkpoint="ab",
        n_cases=4,
        n_patients=4,
        score=0.8,
        score_before=0.7,
        gain_interval95=(0.05, 0.2),
        notes=("threshold_whole 0.5 would ...",),
    )
    path = write_tuning(tmp_path, written)
    assert read_tuning(tmp_path, checkpoint="ab") == written
    assert "correct_priors: 0.3" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.yaml"]
    with pytest.raises(
        InputError,
        match=r"tuned\.yaml: found for a checkpoint of epoch 7 that is no longer the run's best",
    ):
        read_tuning(tmp_path, checkpoint="cd")  # trained again, to the same epoch
    for text in ("correct_priors: 0.3", "{", "- 1"):
        path.write_text(text)
        with pytest.raises(InputError, match="not settings as `brats-seg tune` writes them"):
            read_tuning(tmp_path, checkpoint="ab")
    old = {
        "correct_priors": 0.3,
        "min_component_mm3": 50,
        "min_enhancing_mm3": 200,
        "epoch": 7,
        "checkpoint": "ab",
        "n_cases": 4,
    }
    path.write_text(
        yaml.safe_dump(old | {"score": 0.8, "score_before": 0.7})
    )  # of a version without region thresholds
    assert read_tuning(tmp_path, checkpoint="ab").settings == Settings(0.3, 50.0, 200.0)
    path.unlink()
    with pytest.raises(InputError, match="does not exist; `brats-seg tune"):
        read_tuning(tmp_path, checkpoint="ab")


def test_a_case_without_tumor_and_without_a_finding_counts_1():
    nothing = np.zeros(SHAPE, np.uint8)
    for objective in ("dice", "lesion_dice"):
        settings, how = found(SmallBank([(image_of(nothing), nothing)] * 3), objective=objective)
        assert (settings, how["score"]) == (Settings(), 1.0)


def voxels(*rows: list[float]) -> np.ndarray:
    """Probabilities of healthy, merged core, edema, enhancing of voxels in a row, as (K, 1, 1, n)."""
    return np.array(rows, np.float32).T[:, None, None, :]


def test_thresholds_are_nested_by_hand():
    probabilities = voxels(
        [0.6, 0.1, 0.2, 0.1],
        [0.45, 0.05, 0.3, 0.2],
        [0.2, 0.4, 0.3, 0.1],
        [0.1, 0.25, 0.2, 0.45],
        [0.0, 0.3, 0.3, 0.4],
    )
    plain = most_likely(probabilities, np.ones((1, 1, 5), bool))
    assert plain.tolist() == [[[0, 0, 1, 3, 3]]]

    def cut(**thresholds: float) -> list[int]:
        return (
            cut_regions(plain, probabilities, classes=CLASSES, thresholds=RegionThresholds(**thresholds))
            .ravel()
            .tolist()
        )

    assert cut() == plain.ravel().tolist()
    assert cut(whole=0.5) == [
        0,
        2,
        1,
        3,
        3,
    ]  # P(whole) 0.4, 0.55, 0.8, 0.9, 1; the likeliest tumor class of the second is edema
    assert cut(whole=0.85) == [0, 0, 0, 3, 3]
    assert cut(core=0.6) == [0, 0, 2, 3, 3]  # P(core) 0.2, 0.25, 0.5, 0.7, 0.7
    assert cut(active=0.1) == [0, 0, 3, 3, 3]  # P(active) 0.1, 0.2, 0.1, 0.45, 0.4; inside the core alone
    assert cut(active=0.42) == [0, 0, 1, 3, 1]
    assert cut(whole=0.3, core=0.2, active=0.15) == [1, 3, 1, 3, 3]


def test_a_threshold_that_is_no_probability_is_refused():
    with pytest.raises(UsageError, match=r"threshold of core 1\.5"):
        RegionThresholds(core=1.5)
