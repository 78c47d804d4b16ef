"""Networks that are trained together, beside the same networks trained one by one.

In float64: in float32 the sums of the two ways differ in the last digit. Where that changes the sign of a
unit that lies next to 0, the weights of the two networks differ by up to 1e-3.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from striped_images import tiny_settings, write_images

from brats_seg.classification.bench import open_bench, open_images
from brats_seg.classification.fitting import Fitted
from brats_seg.classification.methods import METHODS
from brats_seg.classification.settings import Network
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.models.classic import make_classic
from brats_seg.studies import study
from brats_seg.studies.grid import GridWorkers
from brats_seg.studies.image_cells import Cell, make_cell
from brats_seg.studies.study import make_plan, run_study, study_jobs
from brats_seg.training import stack
from brats_seg.training.remedies import load_recipe
from brats_seg.training.stack import train_together
from brats_seg.training.step import can_stack
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
    """A LeNet-5 for each method, 20 steps on batches of eight: more than three times over the images."""
    settings = tiny_settings(
        distributions=[{"kind": "step", "rho": [4], "mu": [0.5]}],
        methods={name: {"networks": 2} if load_recipe(name).committee else {} for name in methods},
        base=20,
        training={"iterations": 20, "batch_size": 8},
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


def test_a_network_that_diverges_or_fails_leaves_the_others_as_they_are(images: Path) -> None:
    cells = cells_of(images, ("baseline", "focal", "oversample"))
    wild = replace(cells[1], job=replace(cells[1].job, rate=1e9))
    spoiled = replace(cells[2], settings=cells[2].settings.model_copy(update={"network": Network(name="no")}))
    fine, diverged, failed = train_together(Cell.train, [cells[0], wild, spoiled])
    assert_same(fine.unwrap()[0], alone(cells[0].train())[0])
    assert diverged.unwrap()[0].has_failed
    assert isinstance(failed.error, UsageError)


def test_an_error_of_a_joint_step_is_the_error_of_those_that_took_it(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("too little memory")

    monkeypatch.setattr(stack, "functional_call", fail)
    outcomes = train_together(Cell.train, cells_of(images, ("baseline", "focal")))
    assert [str(outcome.error) for outcome in outcomes] == ["too little memory"] * 2


@pytest.mark.parametrize(("name", "stacks"), [("lenet5", True), ("two_class", True), ("all_cnn", False),
                                              ("resnet10", False), ("resnet32", False)])  # fmt: skip
def test_networks_with_dropout_or_batch_norm_are_not_stacked(name: str, stacks: bool) -> None:
    network = make_classic(name, n_channels=1, n_classes=4, image_size=(32, 32))
    assert can_stack(network) == stacks


def test_a_study_in_stacks_has_the_rows_of_single_networks_and_goes_on_with_their_store(
    images: Path, tmp_path: Path
) -> None:
    on = GridWorkers(n=1, device="cpu")
    single = run_study(tiny_settings(stack=1), tmp_path / "single", folder=images, on=on)
    stacked = run_study(tiny_settings(stack=4), tmp_path / "stacked", folder=images, on=on)
    assert len(stacked.rows) == len(single.rows) == 24
    for ours, theirs in zip(stacked.rows, single.rows, strict=True):
        assert ours.pop("loss") == pytest.approx(theirs.pop("loss"), abs=1e-9)
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    again = run_study(tiny_settings(stack=3), tmp_path / "single", folder=images, on=on)
    assert (again.n_kept, again.n_new) == (6, 0)


@pytest.mark.parametrize(
    ("changes", "memory_gb", "expected"),
    [({}, 80, 64), ({}, 0.1, 7), ({"stack": 5}, 80, 5), ({"network": {"name": "two_class"}}, 0.001, 1),
     ({"network": {"name": "all_cnn"}}, 80, 1)],
)  # fmt: skip
def test_on_a_gpu_the_plan_has_a_process_for_each_gpu_and_a_stack_that_fits(
    images: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], memory_gb: float, expected: int
) -> None:
    asked: dict[str, Any] = {}

    def measured(*_: object, **knobs: Any) -> tuple[float, float]:
        asked.update(knobs)
        return 1.0, 1.0

    monkeypatch.setattr(study, "time_iterations", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    card = SimpleNamespace(total_memory=round(memory_gb * 1e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    plan = make_plan(tiny_settings(**changes), folder=images, workers=0, device="cuda")
    assert (plan.workers, plan.stack) == (2, expected)
    assert asked == {"device": "cuda", "stack": expected}


def test_on_a_cpu_networks_are_trained_one_by_one(images: Path) -> None:
    assert make_plan(tiny_settings(), folder=images, workers=1).stack == 1
