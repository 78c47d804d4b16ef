"""A folder of the reader's own scans: plain names, labels whose values nothing tells, scans that no network was trained for."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brats_seg import pipeline
from brats_seg.cli import main
from brats_seg.config import load_config
from brats_seg.scans.volume import make_geometry, read_volume, write_label_map, write_volume

TINY = (
    "network.channels=[8,8,16,16,16,8]",
    "patch.size=[32,32]",
    "training.epochs=1",
    "training.steps=12",
    "training.batch_size=16",
    "training.threads=1",
)
PLAIN = {"t1n": "T1", "t1c": "T1gd", "t2w": "T2", "t2f": "FLAIR (1)", "seg": "gt"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of a release, the same under plain names, a bank and a run."""
    root = tmp_path_factory.mktemp("own")
    pipeline.phantom(root / "scans", n_cases=4, layout="brats2023", size=48, seed=3)
    for path in (root / "scans").rglob("*.nii.gz"):
        to = root / "plain" / path.parent.name / f"{PLAIN[path.name.removesuffix('.nii.gz').rpartition('-')[2]]}.nii.gz"
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    assert pipeline.preprocess(root / "scans", root / "bank", workers=1, n_folds=2).exit_code == 0
    pipeline.train(root / "bank", root / "run", load_config("demo", overrides=TINY), fold=0, device="cpu")
    return root


def ends(*argv: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in argv])
    return int(ended.value.code or 0)


def test_labels_without_a_schema_are_trained_on_only_where_it_is_named(work: Path, tmp_path: Path, capsys) -> None:
    assert ends("preprocess", work / "plain", tmp_path / "bank", "--workers", "1") == 1
    said = capsys.readouterr().err
    assert said.count("nothing says which tissue each value is; expected --schema NAME; the values fit brats2013 (") == 4
    assert ends("preprocess", work / "plain", tmp_path / "bank", "--workers", "1", "--schema", "brats2023") == 0
    assert ends("verify", work / "plain") == 1
    assert ends("verify", work / "plain", "--schema", "brats2023") == 0
    capsys.readouterr()
    assert ends("verify", work / "plain", "--schema", "brats2012") == 2
    assert capsys.readouterr().err.startswith("brats-seg: --schema brats2012: no such label schema; the schemas are brats2013, ")


def test_plain_names_are_predicted_without_asking_and_scored_in_the_schema_that_is_named(work: Path, tmp_path: Path, capsys) -> None:
    for name in ("scans", "plain"):
        assert pipeline.predict(work / "run", work / name, tmp_path / name, device="cpu").exit_code == 0
    assert set(pd.read_csv(tmp_path / "plain" / "predictions.csv")["schema"]) == {"brats2023"}
    expected = pipeline.evaluate(tmp_path / "scans", work / "scans").scores
    assert ends("evaluate", tmp_path / "plain", work / "plain") == 1
    assert capsys.readouterr().out.count("nothing says which tissue each value is") == 4

    later = tmp_path / "later"  # the same references, with enhancing core as 4: the predictions stay in their own values
    shutil.copytree(work / "plain", later)
    for path in later.rglob("gt.nii.gz"):
        values, geometry = read_volume(path)
        write_label_map(path, np.where(values == 3, 4, values), geometry, dtype="uint8")
    for reference, schema in ((work / "plain", "brats2023"), (later, "brats2017")):
        scored = pipeline.evaluate(tmp_path / "plain", reference, schema=schema)
        assert scored.exit_code == 0
        assert [s.dice for s in scored.scores] == pytest.approx([s.dice for s in expected], nan_ok=True)
    page = pipeline.report(tmp_path / "plain", later, output=tmp_path / "report.html", schema="brats2017")
    assert page.exit_code == 0


def test_a_head_with_its_skull_given_four_times_is_refused_unless_both_are_allowed(work: Path, tmp_path: Path, capsys) -> None:
    head = np.random.default_rng(0).integers(50, 900, (40, 48, 48)).astype(np.int16)
    for name in ("t1", "t1ce", "t2", "flair"):
        (tmp_path / "scans" / "ann").mkdir(parents=True, exist_ok=True)
        write_volume(tmp_path / "scans" / "ann" / f"{name}.nii.gz", head, make_geometry(head.shape, dtype="int16"), dtype="int16")
    command = ("predict", work / "run", tmp_path / "scans", tmp_path / "out", "--resample", "--device", "cpu")
    assert ends(*command) == 1
    said = capsys.readouterr().out
    assert "looks unstripped" in said
    assert "t1c is the same scan as t1n" in said
    assert "as in the training; --allow-skull --allow-same-scan takes it all the same" in said
    assert "0 cases segmented, 1 refused" in said
    assert not (tmp_path / "out" / "ann.nii.gz").exists()
    assert ends(*command, "--allow-skull") == 1
    assert "looks unstripped" not in capsys.readouterr().out
    assert ends(*command, "--allow-skull", "--allow-same-scan") == 0
    assert (tmp_path / "out" / "ann.nii.gz").exists()
