"""Scores of the organizers' package of 2026 for random label maps, kept in organizers_2026.json.

The package needs older versions of numpy and pandas than this one, so it runs in an environment of its own:

    python -m venv V; V/bin/pip install BraTS-evaluation==0.0.10; V/bin/python tests/evaluation/organizers.py
"""

import csv
import json
import tempfile
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("organizers_2026.json")
N_PAIRS = 8
TASKS = ("mets", "gli", "ped", "GoAT", "MenRT")
MM = (1.0, 1.0, 1.0)


def random_pair(seed: int, task: str) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Reference and prediction (Z, Y, X) of 0 to 30 lesions in label values of the task, and voxel sizes."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(14, 30, 3))
    reference = _lesions(rng, shape, int(rng.integers(0, 31)))
    prediction = np.roll(reference, tuple(int(n) for n in rng.integers(-1, 2, 3)), (0, 1, 2))
    prediction[rng.random(shape) < 0.08] = 0
    prediction = np.where(prediction == 0, _lesions(rng, shape, int(rng.integers(0, 6))), prediction)
    if seed % 6 == 0:
        prediction[:] = 0
    if task == "MenRT":
        reference, prediction = (
            np.isin(values, (1, 3)).astype(np.uint8) for values in (reference, prediction)
        )
    if task == "GoAT":
        reference, prediction = (np.where(values == 4, 0, values) for values in (reference, prediction))
    return reference, prediction, MM if seed % 2 else (2.0, 0.8, 1.0)


def _lesions(rng: np.random.Generator, shape: tuple[int, ...], n: int) -> np.ndarray:
    values = np.zeros(shape, np.uint8)
    grid = np.ogrid[tuple(slice(0, side) for side in shape)]
    for _ in range(n):
        center = [rng.uniform(0, side) for side in shape]
        distance = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(grid, center, strict=True)))
        radius = rng.choice([0.8, 1.2, 1.8, 2.6, 4.0], p=[0.25, 0.25, 0.25, 0.15, 0.1])
        values[(distance < 1.6 * radius) & (values == 0)] = 2
        values[distance < radius] = rng.choice([1, 3, 3, 4])
        values[distance < 0.5 * radius] = 1
    return values


def main() -> None:
    """Ask the package, and write what it says."""
    from brats_evaluation import config_path
    from brats_evaluation.metrics_parser import parse_mets_results, parse_seg_results
    from panoptica import Panoptica_Evaluator

    tree = {}
    for task in TASKS:
        evaluator = Panoptica_Evaluator.load_from_config(str(config_path(task)))
        rows = []
        for seed in range(N_PAIRS):
            reference, prediction, spacing = random_pair(seed, task)
            result = evaluator.evaluate(prediction, reference, voxelspacing=spacing, verbose=False)
            rows.append({k: r.to_dict(True) for k, r in result.items()} | {"subject_name": str(seed)})
        with tempfile.TemporaryDirectory() as folder:
            found, table = Path(folder, "found.json"), Path(folder, "table.csv")
            found.write_text(json.dumps({"metrics": rows, "missings": []}, default=float))
            if task == "mets":  # the numbers of the organizers' workflow
                parse_mets_results(found, 27, 0.2, table)
            else:
                parse_seg_results(found, table)
            with table.open(newline="") as file:
                cases = list(csv.DictReader(file))[:N_PAIRS]
            tree[task] = {
                column: [round(float(case[column] or "nan"), 5) for case in cases]
                for column in cases[0]
                if column.startswith(("all_", "small_", "lesionwise_", "global_")) and "_std_" not in column
            }
    lines = [f'"{task}": ' + json.dumps(columns) for task, columns in tree.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
