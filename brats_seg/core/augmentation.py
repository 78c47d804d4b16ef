"""The knobs of augmentation, and its presets."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from brats_seg.core.settings import Section, Share


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the lower end of a range comes first")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_rising)]
PositiveRange = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_rising)
]
UnitRange = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]], AfterValidator(_rising)
]
SpreadRange = Annotated[
    tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]], AfterValidator(_rising)
]


class Augment(Section):
    """Random transforms of a batch. A pair is the range drawn from; probabilities are per patch, other values
    per modality.

    `sharpness` below 0 blurs (-1 is a Gaussian of 1 voxel), above 0 sharpens. `low_resolution` is the factor
    by which a modality is sampled more coarsely (0.5: half as many voxels a side) before it is interpolated
    back. `contrast` is a factor on the distance from the mean. `gamma_inverted` is the probability that gamma
    bends the inverted image. `bias_field` is the size of the coefficients of a smooth factor over the patch.
    `modality_dropout` is the probability, for each modality of each patch, that it is 0 all over; one at
    least is kept. A network trained so takes cases with modalities missing.

    `augment: strong` in a config stands for the knobs of a preset (`PRESETS`); `augment: {preset: strong,
    flip: 0}` lays knobs over them.
    """

    flip: Share = 0.5
    """Probability that an axis is mirrored."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest angle of a rotation, in degrees."""
    scale: PositiveRange = (1.0, 1.0)
    """Range of the magnification."""
    affine_probability: Share = 0.5
    """Probability that a patch is rotated and scaled."""
    gain: PositiveRange = (1.0, 1.0)
    """Range of a factor on all values."""
    shift: Range = (0.0, 0.0)
    """Range of a number that is added to all values."""
    contrast: PositiveRange = (1.0, 1.0)
    """Range of a factor on the distance from the mean."""
    gamma: PositiveRange = (1.0, 1.0)
    """Range of the exponent that bends the histogram."""
    gamma_inverted: Share = 0.0
    """Probability that gamma bends the inverted image."""
    bias_field: SpreadRange = (0.0, 0.0)
    """Range of the size of a smooth factor over the patch."""
    low_resolution: UnitRange = (1.0, 1.0)
    """Range of the share of voxels a side that is kept before interpolating back."""
    sharpness: Range = (0.0, 0.0)
    """Range of blurring (below 0) and sharpening (above 0)."""
    noise_sd: SpreadRange = (0.0, 0.0)
    """Range of the standard deviation of the noise."""
    intensity_probability: Share = 0.5
    """Probability of each transform of the intensities."""
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a modality of a patch is emptied."""

    @model_validator(mode="before")
    @classmethod
    def _knobs_of_a_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, dict) else given
        if name is None or isinstance(name, cls):
            return given
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"no preset '{name}'; the presets are {', '.join(PRESETS)}")
        over = given if isinstance(given, dict) else {}
        return PRESETS[name] | {knob: value for knob, value in over.items() if knob != "preset"}


_LIGHT: dict[str, Any] = {
    "flip": 0.5,
    "rotate_degrees": 30.0,
    "scale": (0.7, 1.4),
    "affine_probability": 0.6,
    "gain": (0.6, 1.6),
    "shift": (-0.4, 0.4),
    "gamma": (0.6, 1.7),
    "noise_sd": (0.0, 0.2),
    "intensity_probability": 0.8,
}
PRESETS: dict[str, dict[str, Any]] = {
    "none": {"flip": 0.0},
    "light": _LIGHT,
    "strong": _LIGHT
    | {
        "contrast": (0.75, 1.25),
        "gamma_inverted": 0.25,
        "bias_field": (0.0, 0.3),
        "low_resolution": (0.5, 1.0),
        "sharpness": (-1.0, 0.5),
        "noise_sd": (0.0, 0.3),
        "intensity_probability": 0.5,
    },
}
"""Knobs of augmentation by name."""
