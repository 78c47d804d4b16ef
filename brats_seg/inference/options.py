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
"""Whether a network is shown whole slices (or volumes), or windows of its patch size; "auto" takes what suits
the network.
"""
Mirroring = Literal["none", "in_plane", "all_axes"]
"""Over which flipped copies class probabilities are averaged."""
Flaw = Literal["skull", "same_scan"]
"""What refuses a case unless it is allowed by name: networks see brains without a skull, and a scan of its
own in each channel.
"""


@dataclass(frozen=True)
class Settings:
    """How class probabilities become a label map; the defaults leave the decision of the network as it is.

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
    """Every option of `predict`. A function that segments one case reads the options of one case alone.

    Attributes:
        also: further runs, or names of packaged networks, whose probabilities are averaged with the first.
        inference: whole slices or windows.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: arithmetic of the networks.
        settings: prior correction, thresholds and clean-up, given by hand. Saved probabilities are those
            before thresholds and clean-up.
        tuned: take the settings from `RUN/tuned.yaml`. None does so for a packaged network that has settings,
            where none are given by hand.
        mirroring: averages over flips, of a 2-D network in plane at most.
        held_out: take only the cases that the run (and each run in `also`) held out.
        part: (i, n) from 1 on: take every n-th case, from the i-th.
        synthetic: take the synthetic (SimBRATS) cases of 2013 too.
        allow_missing: take cases that lack some modalities, whose channels are then 0: for networks trained
            with modality dropout.
        resample: take cases whose spacing is over 5 % off the network's: there and back by SimpleITK.
        allowed: flaws that refuse no case: a head with its skull, one scan given for two modalities.
        suffix: file type of the label maps, one of `scans.volume.SUFFIXES`.
        save_probabilities: also write `OUT/probabilities/<case>.nii.gz`, float32, a volume per class, and
            `classes.txt`, their names.
        skip_finished: leave cases alone that are there whole: label map, row of the table, and probabilities
            where they are wanted; those of other networks or settings (column `settings`) are made again.

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
"""What a setting is to raise, case by case: the mean Dice of whole, core and active (empty in reference and
prediction: 1), or the lesion-wise Dice of the whole tumor (BraTS 2023)."""


class Tuning(Section):
    """The settings that scored best, and on what. Fields with a default are absent from the files of older
    versions.

    Attributes:
        correct_priors: strength of prior correction.
        min_component_mm3, min_enhancing_mm3, min_core_component_mm3, min_active_component_mm3,
            min_component_share: see `Cleanup`.
        threshold_whole, threshold_core, threshold_active: see `RegionThresholds`.
        epoch, checkpoint: of the checkpoint they were found for, the latter the SHA-256 of its file.
        n_cases, n_patients, n_runs: inner cases they were found on, and of how many runs.
        objective: what was raised.
        score, score_before: its mean over the cases with the settings and without; None where nobody measured
            these settings with these networks.
        gain_interval95: 95 % interval of the difference, over patients; None of one patient.
        notes: thresholds that would raise the score and were not taken over, and why; or why the settings
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
    """Write `RUN/tuned.yaml` in one piece."""
    path = run / TUNED
    of = "this run" if tuning.n_runs == 1 else f"{tuning.n_runs} runs"
    origin = "Found by `brats-seg tune`" if tuning.by == "search" else "Chosen by hand"
    said = f"# {origin} on {tuning.n_cases} inner cases of {of}; `brats-seg predict --tuned` uses it.\n"
    write_text(path, said + yaml.safe_dump(tuning.model_dump(mode="json"), sort_keys=False, width=1000))
    return path


def read_tuning(run: Path, *, checkpoint: str) -> Tuning:
    """Read `RUN/tuned.yaml`.

    Raises:
        InputError: not there, not what `write_tuning` wrote, or found for another checkpoint, whose SHA-256
            is not this one.
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
            f"{path}: found for a checkpoint of epoch {tuning.epoch} that is not the run's best any more; "
            "tune it again"
        )
    return tuning
