"""The page of an experiment: tables, paired differences, the ledger, and the same slices under every
strategy.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from brats_seg.bank.bank import PatchBank
from brats_seg.core.arrays import read_npz
from brats_seg.core.comparison import FEWEST
from brats_seg.core.errors import InputError
from brats_seg.core.files import write_text
from brats_seg.core.shapes import Image, TissueMap
from brats_seg.evaluation.comparison import MEAN, differences_to, trained_once
from brats_seg.evaluation.run_rows import Row, variant_of
from brats_seg.reporting.cases import MODALITY_WORDS
from brats_seg.reporting.experiment_figures import FEW_FINDS, difference_chart, error_overlay, tradeoff_chart
from brats_seg.reporting.experiment_table import equal_time_words, experiment_note
from brats_seg.reporting.figures import Picture, gray_levels, mix_chart, overlay
from brats_seg.reporting.pages import shared_templates
from brats_seg.reporting.plots import data_uri, plot, png
from brats_seg.reporting.style import OVER, RIGHT, UNDER
from brats_seg.scans.labels import OUTSIDE, REGIONS, region_classes

N_CASES = 3
MOST_SIDE_BY_SIDE = 5


def write_experiment_page(
    out: Path,
    rows: Sequence[Row],
    summary: Mapping[str, Any],
    *,
    banks: Mapping[str, Path],
    label_maps: Callable[[Row], Path],
    title: str,
    against: str | None = None,
    pictures: Sequence[str] | None = None,
) -> Path:
    """Write `report.html`, one file that opens offline.

    Args:
        out: the experiment's folder.
        rows: of runs.csv.
        summary: the tree of summary.json.
        banks: by the name of the data.
        label_maps: a row -> the file of its label maps; the existing ones are shown.
        title: of the page.
        against: label of the variant that the others are compared with.
        pictures: labels of the variants side by side; None for the first five.
    """
    variants = summary["variants"]
    datasets = list(dict.fromkeys(v["data"] for v in variants))
    classes = [r for r in (variants[0]["regions"] if variants else ()) if r not in (*REGIONS, MEAN)]
    differences, equal_time = differences_to(summary, against=against), summary.get("equal_time")
    cards = _cards(rows, banks, pictures, label_maps, classes=classes) if rows else []
    content = {
        "title": title,
        "n_cases": summary["n_cases"],
        "n_patients": summary["n_patients"],
        "scored": summary["scored"],
        "n_runs": summary["n_runs"],
        "n_runs_asked": summary["n_runs_asked"],
        "compared": _compared(rows, variants),
        "fewest": FEWEST,
        "few_finds": FEW_FINDS,
        "patches": sorted({v["patches"] for v in variants}),
        "variants": variants,
        "with_data": len(datasets) > 1,
        "regions": REGIONS,
        "columns": (*REGIONS, MEAN, "healthy"),
        "classes": classes,
        "differences": differences,
        "few_patients": experiment_note(differences),
        "changes": summary["changes"],
        "equal_time": equal_time,
        "equal_time_words": equal_time_words(equal_time) if equal_time else "",
        "equal_time_differences": [
            difference
            for difference in (differences_to(equal_time, against=against) if equal_time else ())
            if any(region["dice"]["mean"] is not None for region in difference["regions"].values())
        ],
        "difference_figure": plot(
            difference_chart(differences), alt="Paired differences of Dice; the numbers are in table 3."
        )
        if differences
        else None,
        "tradeoffs": [
            (
                data,
                plot(
                    tradeoff_chart([v for v in variants if v["data"] == data], regions=classes[1:]),
                    alt=_tradeoff_words(data),
                ),
            )
            for data in datasets
        ],
        "trained": trained_once(variants),
        "mix_figure": _mix_figure(trained_once(variants), classes, with_data=len(datasets) > 1),
        "n_shown": len(cards[0]["heads"]) - 1 if cards else 0,
        "n_there": len([v for v in variants if v["data"] == datasets[0]]) if datasets else 0,
        "cards": cards,
        "colors": {"over": OVER, "under": UNDER, "right": RIGHT},
        "failed": summary["failed"],
        "banks": sorted({r["bank"] for r in rows}),
        "versions": summary["versions"],
        "version": version("brats-seg"),
    }
    path = out / "report.html"
    write_text(path, shared_templates().get_template("experiment.html").render(content))
    return path


def _compared(rows: Sequence[Row], variants: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(str(variant["label"]) for variant in variants))
    n_folds, n_seeds = (len({row[key] for row in rows}) for key in ("fold", "seed"))
    folds, seeds = (f"{n} {word}{'s' * (n != 1)}" for n, word in ((n_folds, "fold"), (n_seeds, "seed")))
    return f"Compared: {', '.join(names)}, on {folds} with {seeds}; all else is equal."


def _tradeoff_words(data: str) -> str:
    return (
        f"Sensitivity against precision of each tissue class{f' on {data}' if data else ''}; the numbers are "
        "in summary.json."
    )


def _mix_figure(variants: Sequence[Mapping[str, Any]], classes: Sequence[str], *, with_data: bool) -> Any:
    """The patch-voxel mix that each trained strategy drew."""
    mixes = {}
    for variant in variants:
        shares = [variant["ledger"].get(c, {}).get("voxel_share") for c in classes]
        if all(share is not None for share in shares):
            mixes[(f"{variant['data']}: " if with_data else "") + variant["strategy"]] = np.array(
                shares, np.float64
            )
    return (
        plot(
            mix_chart(mixes, classes=classes),
            alt="Shares of the patch voxels by class; the numbers are in table 4.",
        )
        if mixes
        else None
    )


def _cards(
    rows: Sequence[Row],
    banks: Mapping[str, Path],
    pictures: Sequence[str] | None,
    label_maps: Callable[[Row], Path],
    *,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Three cases of the first fold and seed: the worst, the middle and the best of the first strategy that
    have every region.
    """
    first = rows[0]
    first_runs = [r for r in rows if all(r[name] == first[name] for name in ("data", "fold", "seed"))]
    variants = {variant_of(r): r for r in first_runs}
    shown = [v for v in variants if v.label in (pictures or ())] or list(variants)[:MOST_SIDE_BY_SIDE]
    maps = {v.label: label_map_of for v in shown if (label_map_of := _read_maps(label_maps(variants[v])))}
    if not maps:
        return []
    bank = PatchBank(banks[first["data"]], patch_size=(1, 1), cases=_picked(first_runs))
    cards = []
    for number in bank.selected:
        case, (image, tissue) = bank.cases[number].id, bank.volume(number)
        made = {label: of_case[case] for label, of_case in maps.items() if case in of_case}
        fitting = {label: made_map for label, made_map in made.items() if made_map.shape == tissue.shape}
        cards.append(_card(case, image, tissue, fitting, classes=classes))
    return cards


def _read_maps(path: Path) -> dict[str, TissueMap]:
    """Label maps by case; empty if the file is missing or damaged, because the scores do not need these
    pictures.
    """
    try:
        return read_npz(path)
    except (OSError, InputError):
        return {}


def _picked(rows: Sequence[Row]) -> list[str]:
    """Cases by the mean Dice of the first variant, those first that have every region."""
    first = variant_of(rows[0])
    dice: dict[str, list[float]] = {}
    for row in rows:
        if variant_of(row) == first and row["region"] in REGIONS and row["n_reference_vox"]:
            dice.setdefault(row["case"], []).append(row["dice"])
    whole = [case for case, values in dice.items() if len(values) == len(REGIONS)] or list(dice)
    ranked = sorted(whole, key=lambda case: (sum(dice[case]), case))
    return [ranked[i] for i in sorted({round(i * (len(ranked) - 1) / (N_CASES - 1)) for i in range(N_CASES)})]


def _card(
    case: str,
    image: Image,
    tissue: TissueMap,
    predictions: Mapping[str, TissueMap],
    *,
    classes: Sequence[str],
) -> dict[str, Any]:
    """The slice with the largest core: tissue classes of each, then too much and too little of the whole
    tumor and of the core.
    """
    reference = np.where(tissue == OUTSIDE, np.uint8(0), tissue)
    parts = {region: region_classes(region, classes) for region in REGIONS}
    core = np.isin(reference, parts["core"])
    z = int((core if core.any() else reference > 0).sum(axis=(1, 2)).argmax())
    names = ("t2f", "t1c") if image.shape[3] > 1 else ("t2f", "t2f")
    grays = {name: _gray(image[..., _channel(name, image)][z]) for name in names}
    columns = {"reference": reference} | dict(predictions)
    pictures: list[tuple[str, list[tuple[str, Picture]]]] = [
        (
            f"tissue on {MODALITY_WORDS[names[1]]}",
            [
                (
                    n,
                    overlay(
                        grays[names[1]],
                        m[z],
                        classes=classes,
                        outline=None if m is reference else reference[z],
                    ),
                )
                for n, m in columns.items()
            ],
        )
    ]
    for region, name in (("whole", names[0]), ("core", names[1])):
        truth = np.isin(reference[z], parts[region])
        drawn = [
            (n, error_overlay(grays[name], truth, np.isin(m[z], parts[region]))) for n, m in columns.items()
        ]
        pictures.append((f"{region} on {MODALITY_WORDS[name]}", drawn))
    return {
        "case": case,
        "slice_number": z + 1,
        "n_slices": reference.shape[0],
        "heads": list(columns),
        "rows": [
            (name, [(column, data_uri(png(picture))) for column, picture in row]) for name, row in pictures
        ],
    }


def _channel(name: str, image: Image) -> int:
    return {"t1n": 0, "t1c": 1, "t2w": 2, "t2f": 3}[name] if image.shape[3] == 4 else 0


def _gray(pixels: np.ndarray) -> np.ndarray:
    brain = pixels[pixels != 0]
    low, high = np.percentile(brain, (1, 99.5)) if brain.size else (0.0, 1.0)
    gray = gray_levels(pixels.astype(np.float32), low=float(low) - 0.3, high=float(high))
    gray[pixels == 0] = 0
    return gray
