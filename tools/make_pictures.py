"""The pictures of README and docs, from phantom scans and their predictions.

python tools/make_pictures.py demo/scans demo/predictions docs/images
"""

import statistics
from pathlib import Path

import typer

from brats_seg.core.files import atomic
from brats_seg.evaluation.folders import evaluate_folders
from brats_seg.reporting.cases import SeenCase, case_pictures, see_case
from brats_seg.reporting.figures import picture_row
from brats_seg.reporting.plots import png
from brats_seg.scans.labels import REGIONS
from brats_seg.scans.layouts import find_cases


def median_case(scans: Path, predictions: Path) -> SeenCase:
    """The case in the middle by mean Dice, of those that have all three regions: neither our best nor our
    worst.
    """
    scores = evaluate_folders(predictions, scans).scores
    classes = [s for s in dict.fromkeys(score.region for score in scores) if s not in REGIONS]
    dice = {}
    for case in dict.fromkeys(s.case for s in scores):
        rows = [s for s in scores if s.case == case and s.region in REGIONS]
        if all(s.n_reference_vox for s in rows):
            dice[case] = statistics.mean(s.dice for s in rows)
    chosen = sorted(dice, key=dice.__getitem__)[(len(dice) - 1) // 2]
    case = next(c for c in find_cases(scans).cases if c.id == chosen)
    return see_case(case, predictions / f"{chosen}.nii.gz", classes)


def main(scans: Path, predictions: Path, images: Path) -> None:
    """Write segmentation.png: four modalities, reference and prediction of the case in the middle."""
    seen = median_case(scans, predictions)
    rows = case_pictures(seen, modalities=("t1n", "t1c", "t2w", "t2f"), scale=4)
    tiles = {row.name: row.columns[0][1] for row in rows} | {
        name: picture for name, picture in rows[-1].columns[1:]
    }
    figure = picture_row(tiles, classes=seen.classes, inches=1.5)
    images.mkdir(parents=True, exist_ok=True)
    with atomic(images / "segmentation.png") as part:
        part.write_bytes(png(figure))
    typer.echo(f"{images / 'segmentation.png'}: {seen.case.id}")


if __name__ == "__main__":
    typer.run(main)
