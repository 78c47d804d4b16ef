"""The knobs of augmentation, and its presets."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from brats_seg.core.settings import Section, Share


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the lower end of a range must come first")
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
    """Random transforms of a batch. A pair is the range of a random value. Probabilities are per patch, other
    values per modality.

    `sharpness` below 0 blurs (-1 is a Gaussian of 1 voxel), above 0 sharpens. `low_resolution` is the factor
    on the number of voxels per side (0.5: half as many) at which a modality is sampled before it is
    interpolated back. `contrast` is a factor on the difference from the mean. `gamma_inverted` is the
    probability that gamma is applied to the inverted image. `bias_field` is the size of the coefficients of a
    smooth factor over the patch. `modality_dropout` is the probability, for each modality of each patch, that
    all its values are set to 0; at least one modality is kept. A network that is trained with it accepts
    cases with missing modalities.

    `augment: strong` in a config means the knobs of a preset (`PRESETS`). `augment: {preset: strong,
    flip: 0}` changes knobs of the preset.
    """

    flip: Share = 0.5
    """Probability that an axis is flipped."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest angle of a rotation, in degrees."""
    scale: PositiveRange = (1.0, 1.0)
    """Range of the magnification."""
    affine_probability: Share = 0.5
    """Probability that a patch is rotated and scaled."""
    gain: PositiveRange = (1.0, 1.0)
    """Range of a factor on all values."""
    shift: Range = (0.0, 0.0)
    """Range of a constant that is added to all values."""
    contrast: PositiveRange = (1.0, 1.0)
    """Range of a factor on the difference from the mean."""
    gamma: PositiveRange = (1.0, 1.0)
    """Range of the exponent of gamma."""
    gamma_inverted: Share = 0.0
    """Probability that gamma is applied to the inverted image."""
    bias_field: SpreadRange = (0.0, 0.0)
    """Range of the size of a smooth factor over the patch."""
    low_resolution: UnitRange = (1.0, 1.0)
    """Range of the share of voxels per side at low resolution, before interpolating back."""
    sharpness: Range = (0.0, 0.0)
    """Range of blurring (below 0) and sharpening (above 0)."""
    noise_sd: SpreadRange = (0.0, 0.0)
    """Range of the standard deviation of the noise."""
    intensity_probability: Share = 0.5
    """Probability of each intensity transform."""
    modality_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a modality of a patch is set to 0."""

    @model_validator(mode="before")
    @classmethod
    def _knobs_of_a_preset(cls, given: Any) -> Any:
        name = given.get("preset") if isinstance(given, dict) else given
        if name is None or isinstance(name, cls):
            return given
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"'{name}' is not a preset; the presets are {', '.join(PRESETS)}")
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
