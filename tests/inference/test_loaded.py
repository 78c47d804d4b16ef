"""Images in memory give the label map that their files give."""

import runpy
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor

import brats_seg as bs
from brats_seg import pipeline
from brats_seg.bank.build import BuildOptions
from brats_seg.core.config import load_config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.inference.loaded import LoadedRun
from brats_seg.inference.options import PredictOptions
from brats_seg.phantoms.cohort import write_cohort

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
TINY = (
    "network.channels=[4,4,4,4,4,4]",
    "patch.size=[32,32]",
    "network.norm=instance",
    "training.epochs=2",
    "training.steps=24",
    "training.ema=0",
    "optimizer.lr=1e-2",
    "training.batch_size=16",
    "training.threads=1",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and the label map that `predict-case` writes for a case of its bank."""
    root = tmp_path_factory.mktemp("loaded")
    write_cohort(root / "scans", n_cases=4, layout="brats2023", size=48, seed=3)
    assert (
        pipeline.preprocess(
            root / "scans", root / "bank", workers=1, options=BuildOptions(n_folds=2)
        ).exit_code
        == 0
    )
    pipeline.train(root / "bank", root / "run", load_config("demo", overrides=TINY), fold=0, device="cpu")
    pipeline.predict_files(
        root / "run", root / "labels.nii.gz", files_of(root), options=PredictOptions(device="cpu")
    )
    return root


def files_of(work: Path) -> dict[str, Path]:
    case = bs.find_cases(work / "scans").cases[0]
    return {name: case.modalities[name].path for name in MODALITIES}


@pytest.fixture(scope="module")
def loaded(work: Path) -> LoadedRun:
    return bs.load_run(work / "run", device="cpu")


def in_monai(file: Path) -> MetaTensor:
    image = nibabel.load(file)
    return MetaTensor(torch.from_numpy(image.get_fdata())[None], affine=torch.from_numpy(image.affine))


@pytest.mark.parametrize("read", [nibabel.load, SimpleITK.ReadImage, in_monai])
def test_images_of_other_packages(work: Path, loaded: LoadedRun, read: Any) -> None:
    expected = nibabel.load(work / "labels.nii.gz")
    segmented = loaded.predict({name: read(file) for name, file in files_of(work).items()})
    np.testing.assert_array_equal(segmented.labels, np.asarray(expected.dataobj))
    np.testing.assert_allclose(segmented.image.affine, expected.affine, atol=1e-4)
    assert len(np.unique(segmented.labels)) > 1
    assert segmented.volumes_ml["whole"] > 0


def test_arrays_need_an_affine(work: Path, loaded: LoadedRun) -> None:
    expected = nibabel.load(work / "labels.nii.gz")
    arrays = {name: nibabel.load(file).get_fdata() for name, file in files_of(work).items()}
    segmented = loaded.predict(arrays, affine=expected.affine)
    np.testing.assert_array_equal(segmented.labels, np.asarray(expected.dataobj))
    with pytest.raises(UsageError, match="t1n is an array and has no affine"):
        loaded.predict(arrays)


def test_images_that_do_not_fit_are_named(work: Path, loaded: LoadedRun) -> None:
    images = {name: nibabel.load(file) for name, file in files_of(work).items()}
    with pytest.raises(InputError, match="t1c, t2f is missing"):
        loaded.predict({name: images[name] for name in ("t1n", "t2w")})
    with pytest.raises(UsageError, match="no modality 't1'; the names are t1n"):
        loaded.predict({"t1": images["t1n"]})
    with pytest.raises(InputError, match=r"t1n has the shape \(4, 4\); it needs three axes"):
        loaded.predict(images | {"t1n": np.zeros((4, 4))}, affine=np.eye(4))
    with pytest.raises(InputError, match=r"^images: "):
        loaded.predict(images | {"t1n": np.zeros((9, 9, 9))}, affine=np.eye(4))


def test_the_example_writes_a_label_map(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    script = Path(__file__).parents[2] / "docs" / "examples" / "predict_in_memory.py"
    files = [str(file) for file in files_of(work).values()]
    monkeypatch.setattr(sys, "argv", [script.name, str(work / "run"), *files, str(tmp_path / "out.nii.gz")])
    runpy.run_path(str(script), run_name="__main__")
    assert "whole: " in capsys.readouterr().out
    assert nibabel.load(tmp_path / "out.nii.gz").shape == nibabel.load(files[0]).shape
