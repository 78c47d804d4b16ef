"""How label maps are made: every option of `predict`, the settings of its decisions, and tuned.yaml."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import TUNED, parse_yaml, read_text, write_text
from brats_seg.core.runtime import Precision
from brats_seg.core.settings import Section, Share
from brats_seg.inference.decisions import Cleanup, RegionThresholds
from brats_seg.scans.volume import SUFFIXES

Inference = Literal["auto", "whole", "windowed"]
"""Whether a network sees whole slices (or volumes), or windows of its patch size; "auto" chooses by the
network.
"""
Mirroring = Literal["none", "in_plane", "all_axes"]
"""Over which flipped copies class probabilities are averaged."""
Flaw = Literal["skull", "same_scan"]
"""Flaws for which a case is refused unless the flaw is allowed by name. Networks expect brains without a
skull, and a different scan in each channel.
"""


@dataclass(frozen=True)
class Settings:
    """How class probabilities become a label map; the defaults do not change the decision of the network.

    Attributes:
        correct_priors: strength of prior correction, 0 to 1.
        threshold_whole, threshold_core, threshold_active: see `RegionThresholds`.
        min_component_mm3, min_enhancing_mm3, min_core_component_mm3, min_active_component_mm3,
            min_component_share: see `Cleanup`.
    """

    correct_priors: float = 0.0
    min_component_mm3: float = 0.0
    min_enhancing_mm3: float = 0.0
    threshold_whole: float | None = None
    threshold_core: float | None = None
    threshold_active: float | None = None
    min_core_component_mm3: float = 0.0
    min_active_component_mm3: float = 0.0
    min_component_share: float = 0.0

    @property
    def cleanup(self) -> Cleanup:
        """The smallest volumes and share."""
        return Cleanup(
            self.min_component_mm3,
            self.min_enhancing_mm3,
            self.min_core_component_mm3,
            self.min_active_component_mm3,
            self.min_component_share,
        )

    @property
    def thresholds(self) -> RegionThresholds:
        """The thresholds of the regions."""
        return RegionThresholds(self.threshold_whole, self.threshold_core, self.threshold_active)


@dataclass(frozen=True)
class PredictOptions:
    """Every option of `predict`. A function that segments one case ignores the options about several cases.

    Attributes:
        also: further runs, or names of packaged networks, whose probabilities are averaged with the first.
        inference: whole slices or windows.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: arithmetic of the networks.
        settings: prior correction, thresholds and clean-up, given by hand. Probabilities are saved before
            thresholds and clean-up.
        tuned: use the settings of `RUN/tuned.yaml`. None uses them for a packaged network that has them,
            unless settings are given by hand.
        mirroring: average over flips; in plane only for a 2-D network.
        held_out: segment only the cases that the run (and each run in `also`) held out.
        part: (i, n), counted from 1: segment every n-th case, from the i-th.
        synthetic: segment the synthetic (SimBRATS) cases of 2013 too.
        allow_missing: accept cases that lack some modalities; the missing channels are 0. For networks
            trained with modality dropout.
        resample: accept cases whose spacing differs by more than 5 % from the network's. SimpleITK resamples
            the scans, and resamples the label map back.
        allowed: flaws that are accepted: a head with its skull, one scan given for two modalities.
        suffix: file type of the label maps, one of `scans.volume.SUFFIXES`.
        save_probabilities: also write `OUT/probabilities/<case>.nii.gz`, float32, a volume per class, and
            `classes.txt`, their names.
        skip_finished: skip cases that are complete: label map, row of the table, and probabilities if wanted.
            Cases of other networks or settings (column `settings`) are segmented again.

    Raises:
        UsageError: an unknown suffix.
    """

    also: tuple[str | Path, ...] = ()
    inference: Inference = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    settings: Settings = Settings()
    tuned: bool | None = None
    mirroring: Mirroring = "none"
    held_out: bool = False
    part: tuple[int, int] = (1, 1)
    synthetic: bool = False
    allow_missing: bool = False
    resample: bool = False
    allowed: frozenset[Flaw] = frozenset()
    suffix: str = ".nii.gz"
    save_probabilities: bool = False
    skip_finished: bool = False

    def __post_init__(self) -> None:
        if self.suffix not in SUFFIXES:
            raise UsageError(
                f"suffix '{self.suffix}': must be one of {', '.join(SUFFIXES)}; `brats-seg export` writes "
                ".seg.nrrd, .dcm and .stl"
            )


Objective = Literal["dice", "lesion_dice"]
"""The score that a setting must raise, case by case: the mean Dice of whole, core and active (1 if reference
and prediction are empty), or the lesion-wise Dice of the whole tumor (BraTS 2023).
"""


class Tuning(Section):
    """The settings that scored best, and on what. Files of older versions lack the fields with a default.

    Attributes:
        correct_priors: strength of prior correction.
        min_component_mm3, min_enhancing_mm3, min_core_component_mm3, min_active_component_mm3,
            min_component_share: see `Cleanup`.
        threshold_whole, threshold_core, threshold_active: see `RegionThresholds`.
        epoch, checkpoint: of the checkpoint that the settings were found for; `checkpoint` is the SHA-256 of
            its file.
        n_cases, n_patients, n_runs: number of inner cases, patients and runs that the settings were found on.
        objective: the score that was maximized.
        score, score_before: mean of the objective over the cases, with the settings and without; None if it
            was not measured for these networks.
        gain_interval95: 95 % interval of the difference, over patients; None of one patient.
        notes: thresholds that would raise the score but were rejected, with the reason; or why the settings
            were chosen.
        by: whether `brats-seg tune` found the settings, or a person chose them.
    """

    correct_priors: Share
    min_component_mm3: Annotated[float, Field(ge=0)]
    min_enhancing_mm3: Annotated[float, Field(ge=0)]
    threshold_whole: Share | None = None
    threshold_core: Share | None = None
    threshold_active: Share | None = None
    min_core_component_mm3: Annotated[float, Field(ge=0)] = 0.0
    min_active_component_mm3: Annotated[float, Field(ge=0)] = 0.0
    min_component_share: Share = 0.0
    epoch: Annotated[int, Field(ge=0)]
    checkpoint: str
    n_cases: Annotated[int, Field(gt=0)]
    n_patients: int | None = None
    n_runs: int = 1
    objective: Objective = "dice"
    score: Share | None = None
    score_before: Share | None = None
    gain_interval95: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    by: Literal["search", "hand"] = "search"

    @property
    def settings(self) -> Settings:
        """What `predict --tuned` uses."""
        return Settings(**{name: getattr(self, name) for name in asdict(Settings())})


def write_tuning(run: Path, tuning: Tuning) -> Path:
    """Write `RUN/tuned.yaml` atomically."""
    path = run / TUNED
    of = "this run" if tuning.n_runs == 1 else f"{tuning.n_runs} runs"
    origin = "Found by `brats-seg tune`" if tuning.by == "search" else "Chosen by hand"
    said = f"# {origin} on {tuning.n_cases} inner cases of {of}; `brats-seg predict --tuned` uses it.\n"
    write_text(path, said + yaml.safe_dump(tuning.model_dump(mode="json"), sort_keys=False, width=1000))
    return path


def read_tuning(run: Path, *, checkpoint: str) -> Tuning:
    """Read `RUN/tuned.yaml`.

    Raises:
        InputError: the file does not exist, was not written by `write_tuning`, or is for a checkpoint of
            another SHA-256.
    """
    path = run / TUNED
    if not path.is_file():
        raise InputError(f"{path}: does not exist; `brats-seg tune {run} BANK` writes it")
    try:
        tuning = Tuning.model_validate(parse_yaml(read_text(path)))
    except ValueError:  # of pydantic too
        raise InputError(f"{path}: not settings as `brats-seg tune` writes them; run it again") from None
    if tuning.checkpoint != checkpoint:
        raise InputError(
            f"{path}: found for a checkpoint of epoch {tuning.epoch} that is no longer the run's best; "
            "tune it again"
        )
    return tuning
