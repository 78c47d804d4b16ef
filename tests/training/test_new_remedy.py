"""A new remedy is one YAML file: no line of code changes, on scans and on images."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_bank import CLASSES, KNOBS, run, write_bank

from brats_seg.classification.settings import StudySettings
from brats_seg.core.config import load_config
from brats_seg.core.settings import parse_settings
from brats_seg.studies.grid import GridWorkers
from brats_seg.studies.strategies import ExperimentConfig, make_strategies
from brats_seg.studies.study import run_study

REMEDY = """
# Every class is drawn alike, and sure examples count less.
sampler: {kind: balanced}
loss: {kind: focal}
"""


@pytest.fixture
def remedy(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(REMEDY)
    return str(path)


def test_a_new_remedy_runs_on_scans(remedy: str, tmp_path: Path) -> None:
    every: dict[str, Any] = {
        **{name: section for name, section in KNOBS.items() if name not in ("sampler", "hard")},
        "training": KNOBS["training"] | {"epochs": 1, "steps": 2},
    }
    config = parse_settings(ExperimentConfig, {"every": every, "strategies": {"mine": {"remedy": remedy}}})
    (strategy,) = make_strategies(config)
    run(tmp_path / "run", write_bank(tmp_path / "bank"), strategy.configs[0])
    trained = load_config(tmp_path / "run" / "config.yaml")
    assert (trained.sampler.kind, trained.loss.kind) == ("balanced", "focal")
    drawn = pd.read_csv(tmp_path / "run" / "ledger.csv").set_index("class")["center_share"]
    assert drawn[list(CLASSES)].tolist() == [0.2] * 5


def test_a_new_remedy_runs_on_images(remedy: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    images = generator.integers(0, 256, (40, 20, 20), dtype=np.uint8)
    parts = {f"{part}_{what}": values for part in ("train", "test")
             for what, values in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "images.npz", **parts)
    tree = {
        "images": {"name": "npz"},
        "base": 20,
        "distributions": [{"kind": "step", "rho": [4], "mu": [0.5]}],
        "methods": {"baseline": {}, "mine": {"kind": remedy}},
        "training": {"iterations": 4, "batch_size": 50},
        "decisions": {"priors": ["ledger"]},
    }
    settings = parse_settings(StudySettings, tree)
    study = tmp_path / "study"
    report = run_study(settings, study, folder=tmp_path / "images.npz", on=GridWorkers(n=1, device="cpu"))
    rows = {(row["method"], row["decision"]): row for row in report.rows}
    assert rows["mine", "argmax"]["seen"] == [100, 100]
    assert sorted(rows["baseline", "argmax"]["seen"]) == [40, 160]  # 5 images of 25 are of the rare class
    # The focal loss has no prior to divide out, so that this decision is the baseline's alone.
    assert ("baseline", "prior_ledger") in rows
    assert ("mine", "prior_ledger") not in rows
