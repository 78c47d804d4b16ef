from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bank import SPLIT, knobs, run, write_bank
from torch import Tensor, nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.inference.loaded import load_segmenters
from brats_seg.inference.segmenter import segment_crop
from brats_seg.models.trained import open_run
from brats_seg.training.validation import check_metric, score_inner_cases

CPU = Runtime(torch.device("cpu"))


class Oracle(nn.Module):
    """Reads the class off channel 0."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0].round().long().clamp(0, 4), 5).movedim(-1, 1).float()


def bank_of(path: Path, labels: dict[str, np.ndarray], predicted: dict[str, np.ndarray]) -> PatchBank:
    write_bank(path, names=tuple(labels))
    for case in labels:
        image = np.zeros((*labels[case].shape, 4), np.float16)
        image[..., 0] = predicted[case]
        image[..., 3] = 1  # brain everywhere
        np.save(path / "cases" / case / "image.npy", image)
        np.save(path / "cases" / case / "label.npy", labels[case])
    return PatchBank(path, patch_size=(16, 16))


def test_dice_by_hand_with_empty_regions_left_out(tmp_path: Path) -> None:
    shape = (5, 32, 24)
    a, b, c = (np.zeros(shape, np.uint8) for _ in range(3))
    a[0, 0, :4] = 2, 4, 4, 1
    guess = a.copy()
    guess[0, 0, 1] = 2  # one of two enhancing voxels taken for edema
    b[0, 0, :2] = 2  # no core, found exactly
    b[1] = 255  # outside the brain counts as healthy
    wrong = c.copy()
    wrong[0, 0, 0] = 4  # nothing there, one voxel claimed
    bank = bank_of(
        tmp_path / "bank", {"A": a, "B": b, "C": c}, {"A": guess, "B": np.where(b == 255, 0, b), "C": wrong}
    )
    scores = score_inner_cases(Oracle().eval(), bank.select(["A", "B"]), runtime=CPU)
    assert scores.n_cases == {"whole": 2, "core": 1, "active": 1}
    assert scores.dice == pytest.approx({"whole": 1.0, "core": 2 * 2 / (2 + 3), "active": 2 * 1 / (1 + 2)})
    alone = score_inner_cases(Oracle().eval(), bank.select(["C"]), runtime=CPU)
    assert alone.dice == {"whole": 0, "core": 0, "active": 0}


@pytest.fixture
def three(tmp_path: Path) -> PatchBank:
    """A: 4 edema, 2 enhancing; one enhancing is missed (called edema) and one healthy voxel is called
    enhancing. B: nothing but healthy.
    """
    a, b = (np.zeros((5, 32, 24), np.uint8) for _ in range(2))
    a[0, 0, :6] = 2, 2, 2, 2, 4, 4
    a[1:3] = 255
    guess = np.where(a == 255, 0, a)
    guess[0, 0, 4], guess[0, 0, 7] = 2, 4
    return bank_of(tmp_path / "bank", {"A": a, "B": b}, {"A": guess, "B": b})


@pytest.mark.parametrize(
    ("metric", "of", "value"),
    [
        ("mean_dice", None, (12 / 13 + 0.5 + 0.5) / 3),
        ("last", None, (12 / 13 + 0.5 + 0.5) / 3),
        ("sensitivity", "whole", 1.0),
        ("sensitivity", "enhancing_core", 0.5),
        ("f_score", "active", 0.5),
        ("f_score", "edema", 8 / 9),
        ("sensitivity_and_f_score", "edema", (1 + 8 / 9) / 2),
        ("iou", "core", 1 / 3),
        ("iou", "whole", 6 / 7),
        ("iou", "healthy", ((4 * 32 * 24 + 24 * 32 - 7) / (5 * 32 * 24 - 6) + 1) / 2),
    ],
)
def test_each_metric_by_hand(three: PatchBank, metric: Any, of: str | None, value: float) -> None:
    scores = score_inner_cases(Oracle().eval(), three, runtime=CPU, metric=metric, of=of)
    assert scores.value == pytest.approx(value)
    assert scores.dice == pytest.approx({"whole": 12 / 13, "core": 0.5, "active": 0.5})


def test_a_class_that_no_case_has_gives_no_value(three: PatchBank) -> None:
    scores = score_inner_cases(
        Oracle().eval(), three.select(["B"]), runtime=CPU, metric="f_score", of="edema"
    )
    assert np.isnan(scores.value)
    assert np.isnan(score_inner_cases(Oracle().eval(), three.select(["B"]), runtime=CPU).value)


class Grouped(nn.Module):
    """The oracle's five classes taken together as a grouping has it; what is left out cannot be said."""

    def __init__(self, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.groups, self.oracle = groups, Oracle()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.oracle(x)
        return torch.stack([logits[:, list(group)].sum(1) for group in self.groups], 1)


def test_healthy_or_tumor_is_judged_by_the_dice_of_tumor(three: PatchBank) -> None:
    bank = three.regroup("healthy_or_tumor")
    network = Grouped(((0,), (1, 2, 3, 4))).eval()
    scores = score_inner_cases(network, bank, runtime=CPU)
    assert scores.value == scores.dice["whole"] == pytest.approx(12 / 13)
    assert np.isnan([scores.dice["core"], scores.dice["active"]]).all()
    assert score_inner_cases(network, bank, runtime=CPU, metric="sensitivity", of="tumor").value == 1.0


def test_tumor_classes_are_judged_among_tumor_voxels_alone(three: PatchBank) -> None:
    bank = three.regroup("tumor")
    scores = score_inner_cases(Grouped(((1,), (2,), (3,), (4,))).eval(), bank, runtime=CPU)
    edema, enhancing = 8 / 9, 2 / 3  # the healthy voxel called enhancing is not looked at
    assert scores.value == pytest.approx((edema + enhancing) / 2)
    assert scores.n_cases == {"whole": 0, "core": 1, "active": 1}
    assert scores.dice == pytest.approx(
        {"whole": float("nan"), "core": enhancing, "active": enhancing}, nan_ok=True
    )


CLASSES = ("healthy", "edema", "enhancing_core")


@pytest.mark.parametrize(
    ("metric", "of", "classes", "said"),
    [
        (
            "iou",
            "hole",
            CLASSES,
            "validation.of 'hole': .* whole, core, active, healthy, edema, enhancing_core",
        ),
        ("iou", None, CLASSES, "validation.of 'None'"),
        ("f_score", "core", ("healthy", "tumor"), "'core': .* task: whole, healthy, tumor$"),
        ("f_score", "whole", CLASSES[1:], "'whole': .* core, active, edema, enhancing_core$"),
        ("mean_dice", "core", CLASSES, "'mean_dice' uses all"),
        (
            "dice",
            "core",
            CLASSES,
            "'dice': must be one of mean_dice, sensitivity, f_score, sensitivity_and_f_score, iou, last",
        ),
    ],
)
def test_a_metric_of_nothing_known_is_refused_with_the_choices(
    metric: Any, of: str | None, classes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        getattr(check_metric, "__wrapped__", check_metric)(metric, of=of, classes=classes)


def test_a_run_with_slices_around_predicts_as_it_was_validated(tmp_path: Path) -> None:
    path = write_bank(tmp_path / "bank")
    config = knobs(patch={"slices_around": 1}, sampler={"kind": "balanced"}, training={"epochs": 1})
    result = run(tmp_path / "run", path, config)
    (segmenter,) = load_segmenters((open_run(tmp_path / "run"),), runtime=CPU)
    assert segmenter.slices_around == 1
    bank = PatchBank(path, patch_size=(16, 16), slices_around=1)
    scores = score_inner_cases(
        segmenter.network, bank.select(SPLIT.inner), runtime=CPU, divisor=segmenter.divisor
    )
    assert scores.value == result.best_score
    image, _ = bank.volume(3)
    labels, _ = segment_crop([segmenter], image)
    without_the_last = image.copy()
    without_the_last[-1] = 0
    changed, _ = segment_crop([segmenter], without_the_last)
    assert not np.array_equal(labels[-2], changed[-2])  # the neighbor counts
    assert np.array_equal(labels[:-2], changed[:-2])
