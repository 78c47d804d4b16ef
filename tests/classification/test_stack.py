"""Networks that are trained together, beside the same networks trained one by one.

In float64: in float32 the sums of the two ways differ in the last digit, and a unit that lies so near to 0 that
its sign changes parts the networks by up to 1e-3.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from striped_images import tiny_settings, write_images

from brats_seg.classification.bench import open_bench, open_images
from brats_seg.classification.fitting import Fitted
from brats_seg.classification.methods import METHODS
from brats_seg.core.runtime import Runtime
from brats_seg.studies.image_cells import Cell, make_cell
from brats_seg.studies.study import study_jobs
from brats_seg.training.remedies import load_recipe
from brats_seg.training.stack import train_together
from brats_seg.training.steps import alone

CPU = Runtime(torch.device("cpu"))
OF_REGIONS = ("focal_tversky", "tversky", "unified_focal")
"""Methods that are refused for images: they compare regions of voxels."""
TRAINED = [name for name in METHODS if name not in OF_REGIONS]
EIGHTS = [(*TRAINED[start : start + 8], *TRAINED)[:8] for start in range(0, len(TRAINED), 8)]
"""Eight methods each; every method is among them."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes.npz")


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def cells_of(images: Path, methods: tuple[str, ...], **changes: object) -> list[Cell]:
    """A LeNet-5 for each method, 50 steps on batches of eight."""
    settings = tiny_settings(
        distributions=[{"kind": "step", "rho": [4], "mu": [0.5]}],
        methods={name: {"networks": 2} if load_recipe(name).committee else {} for name in methods},
        training={"iterations": 50, "batch_size": 8},
        **changes,
    )
    bench = open_bench(settings, open_images(settings.images, images, cache=None), runtime=CPU)
    return [make_cell(job, settings=settings, bench=bench, runtime=CPU) for job in study_jobs(settings)]


def assert_same(together: Fitted, single: Fitted) -> None:
    weights = single.network.state_dict()
    for name, values in together.network.state_dict().items():
        assert torch.allclose(values, weights[name], rtol=0, atol=1e-9), name
    assert together.loss == pytest.approx(single.loss, abs=1e-9)
    assert (together.seen == single.seen).all()
    assert together.iterations == single.iterations
    assert together.vote == pytest.approx(single.vote, abs=1e-9)


@pytest.mark.parametrize("methods", EIGHTS, ids=" ".join)
def test_eight_networks_together_are_the_eight_single_ones(images: Path, methods: tuple[str, ...]) -> None:
    outcomes = train_together(Cell.train, cells_of(images, methods))
    for cell, outcome in zip(cells_of(images, methods), outcomes, strict=True):
        for together, single in zip(outcome.unwrap(), alone(cell.train()), strict=True):
            assert_same(together, single)
