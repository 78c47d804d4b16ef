"""Strength of prior correction and clean-up thresholds, found on the inner cases of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from jaxtyping import Float
from pydantic import Field

from brats_seg.bank.bank import PatchBank
from brats_seg.config import Section, Share
from brats_seg.core.files import parse_yaml, read_text, write_text
from brats_seg.core.progress import track
from brats_seg.errors import InputError
from brats_seg.evaluation.overlap import JointHistogram, joint_histogram, overlap_scores
from brats_seg.evaluation.scores import CONVENTIONS
from brats_seg.inference.cleanup import Cleanup, enhancing_and_core, tumor_components, without_small
from brats_seg.inference.dense import brain_mask, class_probabilities, most_likely
from brats_seg.inference.segmenter import Segmenter
from brats_seg.scans.labels import OUTSIDE, REGIONS, region_classes

TUNED = "tuned.yaml"
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of prior correction."""
COMPONENTS_MM3 = (0.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
ENHANCING_MM3 = (0.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

_EMPTY = CONVENTIONS["brats2020"].both_empty
_TIE = 1e-6  # a gain below this is rounding

CaseDice = Float[np.ndarray, "strengths components enhancing"]
"""Mean Dice of the three regions of a case, for each setting."""


class Tuning(Section):
    """The settings that scored best, and on what.

    Attributes:
        correct_priors: strength of prior correction.
        min_component_mm3, min_enhancing_mm3: see `Cleanup`.
        epoch, checkpoint: of the checkpoint they were found for, the latter the SHA-256 of its file.
        n_cases: inner cases they were found on.
        score, score_before: mean Dice of the three regions with them and without (empty in reference and prediction: 1).
    """

    correct_priors: Share
    min_component_mm3: Annotated[float, Field(ge=0)]
    min_enhancing_mm3: Annotated[float, Field(ge=0)]
    epoch: Annotated[int, Field(ge=0)]
    checkpoint: str
    n_cases: Annotated[int, Field(gt=0)]
    score: Share
    score_before: Share

    @property
    def cleanup(self) -> Cleanup:
        """The thresholds."""
        return Cleanup(self.min_component_mm3, self.min_enhancing_mm3)


def tune_settings(
    segmenter: Segmenter, bank: PatchBank, *, shifts: Mapping[float, tuple[float, ...] | None], epoch: int, cleanup: bool = True
) -> Tuning:
    """Try every strength with every pair of thresholds on the bank's selected cases, segmented whole.

    The best mean Dice of whole, core and active wins; among equals the smallest strength, then the smallest thresholds.

    Args:
        segmenter: without a `class_shift`.
        bank: its selected cases are the inner cases; no other is opened.
        shifts: strength of prior correction -> what it adds to the logits of each class; the first is none.
        epoch: of the segmenter's checkpoint.
        cleanup: whether thresholds are tried at all; without, the strength is the best one for maps that are not cleaned up.
    """
    dice = np.stack(
        [_case_dice(segmenter, bank, case, shifts) for case in track(bank.selected, total=len(bank.selected), label="tuning")]
    ).mean(axis=0)
    dice = dice if cleanup else dice[:, :1, :1]
    best = int(np.flatnonzero(dice.ravel() >= dice.max() - _TIE)[0])
    strength, component, enhancing = np.unravel_index(best, dice.shape)
    return Tuning(
        correct_priors=list(shifts)[int(strength)],
        min_component_mm3=COMPONENTS_MM3[int(component)],
        min_enhancing_mm3=ENHANCING_MM3[int(enhancing)],
        epoch=epoch,
        checkpoint=segmenter.checkpoint,
        n_cases=len(bank.selected),
        score=round(float(dice.flat[best]), 6),
        score_before=round(float(dice.flat[0]), 6),
    )


def write_tuning(run: Path, tuning: Tuning) -> Path:
    """Write `RUN/tuned.yaml` in one piece."""
    path = run / TUNED
    said = f"# Found by `brats-seg tune` on {tuning.n_cases} inner cases of this run; `brats-seg predict --tuned` uses it.\n"
    write_text(path, said + yaml.safe_dump(tuning.model_dump(), sort_keys=False))
    return path


def read_tuning(run: Path, *, checkpoint: str) -> Tuning:
    """Read `RUN/tuned.yaml`.

    Raises:
        InputError: not there, not what `write_tuning` wrote, or found for another checkpoint, whose SHA-256 is not this one.
    """
    path = run / TUNED
    if not path.is_file():
        raise InputError(f"{path}: not there; `brats-seg tune {run} BANK` writes it")
    try:
        tuning = Tuning.model_validate(parse_yaml(read_text(path)))
    except ValueError:  # of pydantic too
        raise InputError(f"{path}: not settings as `brats-seg tune` writes them; run it again") from None
    if tuning.checkpoint != checkpoint:
        raise InputError(f"{path}: found for a checkpoint of epoch {tuning.epoch} that is not the run's best any more; tune it again")
    return tuning


def _case_dice(segmenter: Segmenter, bank: PatchBank, case: int, shifts: Mapping[float, tuple[float, ...] | None]) -> CaseDice:
    image, tissue = bank.volume(case)
    reference = np.where(tissue == OUTSIDE, np.uint8(0), tissue)
    brain, voxel_mm3 = brain_mask(image), float(np.prod(bank.cases[case].spacing_mm))
    probabilities = class_probabilities(
        segmenter.network,
        image,
        n_dims=segmenter.n_dims,
        divisor=segmenter.divisor,
        window=segmenter.window_for(image),
        slices_around=segmenter.slices_around,
        readout=segmenter.readout,
    )
    dice = np.empty((len(shifts), len(COMPONENTS_MM3), len(ENHANCING_MM3)))
    for i, shift in enumerate(shifts.values()):
        factor = np.exp(np.zeros(len(bank.classes)) if shift is None else shift).astype(np.float32)
        labels = most_likely(probabilities * factor[:, None, None, None], brain, readout=segmenter.readout)
        components = tumor_components(labels, classes=bank.classes)
        either = (labels != 0) | (reference != 0)  # Dice does not ask for the voxels that both call healthy, 98 in 100
        truth, found, parts = (volume[either][None, None] for volume in (reference, labels, components))
        for j, component in enumerate(COMPONENTS_MM3):
            histogram = joint_histogram(truth, without_small(found, parts, min_voxels=component / voxel_mm3), len(bank.classes))
            for k, enhancing in enumerate(ENHANCING_MM3):
                dice[i, j, k] = _mean_dice(_demoted(histogram, bank.classes, min_voxels=enhancing / voxel_mm3), bank.classes)
    return dice


def _demoted(histogram: JointHistogram, classes: Sequence[str], *, min_voxels: float) -> JointHistogram:
    """The histogram after the enhancing threshold: what is relabeled moves to another column, and no voxel has to be looked at."""
    enhancing, core = enhancing_and_core(classes)
    if histogram[:, enhancing].sum() >= min_voxels:
        return histogram
    moved = histogram.copy()
    moved[:, core] += moved[:, enhancing]
    moved[:, enhancing] = 0
    return moved


def _mean_dice(histogram: JointHistogram, classes: Sequence[str]) -> float:
    values = [overlap_scores(histogram, region_classes(region, classes)).dice for region in REGIONS]
    return float(np.mean([_EMPTY if np.isnan(value) else value for value in values]))
