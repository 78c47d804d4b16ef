"""A run or a packaged network as it is opened."""

from pathlib import Path

import numpy as np
import pytest
import torch

from brats_seg.core.config import Config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import sha256
from brats_seg.core.settings import dump_config
from brats_seg.models import trained
from brats_seg.models.checkpoint import Checkpoint, save_checkpoint
from brats_seg.models.trained import held_out_by_all, open_run


def write_run(folder: Path, *, held_out: tuple[str, ...] = ("C",), loss: str = "cross_entropy") -> Path:
    config = Config.model_validate({"loss": {"kind": loss}})
    folder.mkdir()
    save_checkpoint(
        folder / "checkpoint_best.pt",
        Checkpoint(
            weights={"w": torch.zeros(1)},
            config=dump_config(config),
            modalities=("t1c",),
            classes=("healthy", "tumor"),
            spacing_mm=(1.0, 1.0, 1.0),
            normalization={"percentiles": [0.5, 99.5]},
            bank="abc",
            fold=0,
            train_cases=("A",),
            inner_cases=("B",),
            held_out_cases=held_out,
            effective_prior=(0.5, 0.5),
            natural_prior=(0.9, 0.1),
            epoch=1,
            step=0,
            score=None,
            n_threads=1,
            precision="float32",
            versions={},
        ),
    )
    return folder


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, load = [], trained.load_checkpoint

    def counted(path: Path) -> Checkpoint:
        read.append(path)
        return load(path)

    monkeypatch.setattr(trained, "load_checkpoint", counted)
    run = open_run(write_run(tmp_path / "run"))
    assert run.digest == sha256(tmp_path / "run" / "checkpoint_best.pt")
    assert run.held_out_cases == ("C",)
    assert run.networks[0].class_shift(1.0) == pytest.approx((np.log(0.9 / 0.5), np.log(0.1 / 0.5)))
    assert read == [tmp_path / "run" / "checkpoint_best.pt"]


def test_a_loss_without_a_prior_has_no_shift(tmp_path: Path) -> None:
    (network,) = open_run(write_run(tmp_path / "run", loss="focal")).networks
    assert not network.has_prior
    assert network.class_shift(0.0) is None
    with pytest.raises(UsageError, match="focal"):
        network.class_shift(0.5)


def test_only_cases_that_all_runs_held_out_are_held_out(tmp_path: Path) -> None:
    first = open_run(write_run(tmp_path / "first", held_out=("C", "D")))
    second = open_run(write_run(tmp_path / "second", held_out=("D", "E")))
    assert held_out_by_all([first, second]) == ("D",)
    third = open_run(write_run(tmp_path / "third", held_out=("F",)))
    with pytest.raises(UsageError, match="average runs of one fold"):
        held_out_by_all([first, third])
    with pytest.raises(InputError, match="trained on every case"):
        held_out_by_all([open_run(write_run(tmp_path / "all", held_out=()))])
