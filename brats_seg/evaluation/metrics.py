"""Every score by name: its unit, which direction is better, and its best value. Data, not code."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A column of scores.csv that is averaged over cases.

    Attributes:
        name: of the column.
        words: what a table calls it.
        unit: "" for a share from 0 to 1.
        better: which values are better; "nearer" to the best value.
        best: the best value.
    """

    name: str
    words: str
    unit: str = ""
    better: Literal["higher", "lower", "nearer"] = "higher"
    best: float = 1.0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice"),
        Metric("iou", "IoU"),
        Metric("sensitivity", "sensitivity"),
        Metric("specificity", "specificity"),
        Metric("precision", "precision"),
        Metric("hd95_mm", "HD95 (mm)", "mm", "lower", 0.0),
        Metric("surface_dice", "surface Dice"),
        Metric("surface_dice_05mm", "surface Dice at 0.5 mm"),
        Metric("volume_error_ml", "volume error (ml)", "ml", "nearer", 0.0),
        Metric("lesion_dice", "lesion Dice"),
        Metric("lesion_hd95_mm", "lesion HD95 (mm)", "mm", "lower", 0.0),
        Metric("lesion_surface_dice", "lesion surface Dice"),
        Metric("lesion_surface_dice_05mm", "lesion surface Dice at 0.5 mm"),
        Metric("lesion_f1", "lesion F1"),
        Metric("lesion_sensitivity", "lesion sensitivity"),
        Metric("lesion_precision", "lesion precision"),
        Metric("lesion_sensitivity_below_100mm3", "lesion sensitivity below 100 mm3"),
        Metric("lesion_sensitivity_below_1000mm3", "lesion sensitivity, 100 to 1000 mm3"),
        Metric("lesion_sensitivity_from_1000mm3", "lesion sensitivity from 1000 mm3"),
        Metric("small_lesion_f1", "small-lesion F1"),
        Metric("small_lesion_sensitivity", "small-lesion sensitivity"),
        Metric("small_lesion_precision", "small-lesion precision"),
        Metric("false_lesion_mm3", "mean false lesion (mm3)", "mm3", "lower", 0.0),
    )
}
