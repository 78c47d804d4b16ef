"""How label maps are made: the settings of their decisions, and every option of `predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Precision
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
