from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bank import knobs, run, write_bank
from torch import nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.files import BEST
from brats_seg.core.runtime import start_runtime
from brats_seg.inference import windowed
from brats_seg.models.checkpoint import load_checkpoint
from brats_seg.training.norms import measure_norms


class OneNorm(nn.Module):
    """A batch norm on the scan itself, then a layer that makes classes of it."""

    def __init__(self, n_dims: int) -> None:
        super().__init__()
        self.norm = (nn.BatchNorm2d if n_dims == 2 else nn.BatchNorm3d)(4)
        self.classes = (nn.Conv2d if n_dims == 2 else nn.Conv3d)(4, 5, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classes(self.norm(inputs))


@pytest.mark.parametrize("patch_size", [(16, 16), (4, 16, 16)])
def test_statistics_are_those_of_the_whole_scans(tmp_path: Path, patch_size: tuple[int, ...]) -> None:
    # Eight slices of 32 x 32 fill every pass, so that no padding has a part in the statistics.
    write_bank(tmp_path / "bank", shape=(8, 32, 32))
    bank = PatchBank(tmp_path / "bank", patch_size=patch_size).select(["A", "B"])
    network = OneNorm(len(patch_size))
    weights = {name: value.clone() for name, value in network.named_parameters()}
    measure_norms(network, bank, divisor=4, runtime=start_runtime(device="cpu", precision="float32"))
    scans = [bank.volume(case)[0].astype(np.float64).reshape(-1, 4) for case in bank.selected]
    mean = np.mean([scan.mean(axis=0) for scan in scans], axis=0)
    variance = np.mean([scan.var(axis=0, ddof=1) for scan in scans], axis=0)
    np.testing.assert_allclose(network.norm.running_mean.numpy(), mean, atol=1e-4)
    np.testing.assert_allclose(network.norm.running_var.numpy(), variance, rtol=1e-3)
    assert all(torch.equal(weights[name], value) for name, value in network.named_parameters())


SEEN: list[tuple[int, ...]] = []


class Watched(OneNorm):
    """Notes the sides of what it is shown."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        SEEN.append(tuple(inputs.shape[2:]))
        return super().forward(inputs)


def test_a_scan_that_does_not_fit_into_memory_is_shown_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windowed, "_memory_bytes", lambda device: 0)
    write_bank(tmp_path / "bank", shape=(8, 32, 32))
    bank = PatchBank(tmp_path / "bank", patch_size=(4, 16, 16)).select(["A"])
    network = Watched(3)
    SEEN.clear()
    measure_norms(network, bank, divisor=4, runtime=start_runtime(device="cpu", precision="float32"))
    assert (8, 32, 32) not in SEEN
    assert SEEN.count((4, 16, 16)) > 1


def test_measured_statistics_replace_the_running_ones_at_the_end_of_a_run(tmp_path: Path) -> None:
    write_bank(tmp_path / "bank")
    for kind in ("running", "measured"):
        run(
            tmp_path / kind,
            tmp_path / "bank",
            config=knobs(training={"norm_statistics": kind, "epochs": 2}, validation={"metric": "last"}),
        )
    running, measured = (load_checkpoint(tmp_path / kind / BEST).weights for kind in ("running", "measured"))
    for name, value in running.items():
        is_statistic = name.endswith(("running_mean", "running_var"))
        assert torch.equal(value, measured[name]) != is_statistic or name.endswith("num_batches_tracked")
