"""Other tasks than gliomas, the whole way from verify to rank: metastases, pediatric tumors, and meningiomas
with one scan and one class.
"""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from brats_seg.bank.listing import read_listing
from brats_seg.cli import main
from brats_seg.evaluation.conventions import CONVENTIONS
from brats_seg.evaluation.ranking import rank_tables
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.scans.labels import SCHEMAS, common_classes, regions_of
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_volume

TINY = (
    "network.name=unet2d", "network.channels=[8,16]", "network.num_res_units=0", "patch.size=[32,32]",
    "training.epochs=1", "training.steps=2",
    "training.batch_size=8", "training.threads=1",
)  # fmt: skip


def ends(*argv: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("layout", "modalities", "convention"),
    [
        ("brats2025met", ("t1n", "t1c", "t2w", "t2f"), "brats2026_met"),
        ("brats2024ped", ("t1n", "t1c", "t2w", "t2f"), "brats2026_ped"),
        ("brats2024menrt", ("t1c",), "brats2024_men_rt"),
    ],
)
def test_from_verify_to_rank(tmp_path: Path, layout: str, modalities: tuple[str, ...], convention: str):
    scans, bank, run = tmp_path / "scans", tmp_path / "bank", tmp_path / "run"
    write_cohort(scans, n_cases=4, layout=layout, size=48, seed=3)
    cases = find_cases(scans).cases
    schema = SCHEMAS[cases[0].schema]
    classes = common_classes([schema])
    assert ends("verify", scans, "--workers", "1") == 0
    assert ends("preprocess", scans, bank, "--workers", "1", "--folds", "2") == 0
    listing = read_listing(bank)
    assert (listing.modalities, listing.classes) == (modalities, classes)
    overrides = [word for knob in TINY for word in ("--set", knob)]
    assert ends("train", bank, run, "--config", "demo", "--fold", "0", "--device", "cpu", *overrides) == 0
    assert ends("predict", run, scans, tmp_path / "network", "--device", "cpu") == 0
    tables = {}
    # The references themselves, as a second set of predictions.
    (tmp_path / "experts").mkdir()
    for case in cases:
        assert case.label is not None
        shutil.copy(case.label.path, tmp_path / "experts" / f"{case.id}.nii.gz")
        written = read_volume(tmp_path / "network" / f"{case.id}.nii.gz")[0]
        assert set(np.unique(written).tolist()) <= set(schema.values)
    for name in ("network", "experts"):
        scores = tmp_path / f"{name}_scores"
        assert ends("evaluate", tmp_path / name, scans, "--convention", convention, "--output", scores) == 0
        tables[name] = scores / "scores.csv"
        with tables[name].open(newline="") as file:
            regions = {row["region"] for row in csv.DictReader(file)}
        assert regions == {*regions_of(classes), *classes}
        summary = json.loads((scores / "summary.json").read_text())["conventions"][convention]["regions"]
        assert set(summary) == regions
    ranking = rank_tables(tables)
    assert ranking.convention == convention
    assert [place.name for place in ranking.places] == ["experts", "network"]
    assert set(ranking.metrics) == set(CONVENTIONS[convention].headline)
    assert ends("rank", *tables.values()) == 0
    assert ends("report", tmp_path / "network", scans, "--output", tmp_path / "report.html") == 0
