"""A cell of a study: what is trained on what, which weights move, which rows come back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from striped_images import N_CLASSES, tiny_settings, write_images
from torch import nn

from brats_seg.classification.bench import Bench, check_study, open_bench, open_images, part_training
from brats_seg.classification.decisions import divide_by_prior
from brats_seg.classification.fitting import (
    Fitted,
    Looks,
    TrainingImages,
    build_network,
    fit,
    fitting_second_phase,
)
from brats_seg.classification.images import load_images
from brats_seg.classification.methods import METHODS, remedy
from brats_seg.classification.settings import Knobs, StudySettings
from brats_seg.classification.source import ImageSource
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.imbalance.sampler import Draw
from brats_seg.imbalance.samplers import HardSampler
from brats_seg.studies.image_cells import train_cell
from brats_seg.studies.store import Row
from brats_seg.studies.study import study_jobs
from brats_seg.training import phases
from brats_seg.training.loop import Loop, Record
from brats_seg.training.step import Learner, Schedule
from brats_seg.training.steps import alone

CPU = Runtime(torch.device("cpu"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes.npz")


def bench_of(settings: StudySettings, images: Path) -> Bench:
    return open_bench(settings, open_images(settings.images, images, cache=None), runtime=CPU)


def rows_of(images: Path, **changes: Any) -> list[Row]:
    """All rows of a tiny study, in this process."""
    settings = tiny_settings(**changes)
    bench = bench_of(settings, images)
    return [
        row
        for job in study_jobs(settings)
        for row in alone(train_cell(job, settings=settings, bench=bench, runtime=CPU))
    ]


@pytest.fixture(scope="module")
def plain_rows(images: Path) -> list[Row]:
    """All rows of the tiny study as it is."""
    return rows_of(images)


ONE_SET = [{"kind": "step", "rho": [4], "mu": [0.5]}]


def draw_steps(
    name: str, knobs: Knobs, pool: ImageSource, settings: StudySettings, *, n: int, network: nn.Module
) -> list[Draw]:
    """The first `n` draws of a training with a remedy; between two passes the network is asked."""
    config = remedy(name, knobs).config(settings, lr=0.01, seed=0)
    method = phases.Method(
        config=config, index=pool.index, runtime=CPU, targets="images", redraw=knobs.redraw
    )
    loop = Loop(
        method=method,
        phase=method.first(),
        network=network,
        source=TrainingImages(pool, runtime=CPU),
        record=Record(),
    )
    drawn = []
    for _ in range(n):
        drawn.append(loop.steps.sampler.next())
        if loop.steps.sampler.step == 0:
            loop.begin_pass()
    return drawn


def test_a_row_says_what_it_came_from(plain_rows: list[Row]):
    rows = plain_rows
    json.dumps(rows, allow_nan=False)
    row = next(row for row in rows if row["rho"] == 10 and row["method"] == "baseline")
    assert sorted(row["counts"]) == [4, 4, 40, 40]
    assert [k for k, n in enumerate(row["counts"]) if n == 4] == row["minority"]
    assert {
        "seed",
        "counts",
        "config",
        "versions",
        "auc",
        "accuracy",
        "recall_per_class",
        "confusion",
    } <= set(row)
    assert {r["decision"] for r in rows} == {"argmax", "prior_set", "prior_ledger"}
    assert {r["method"] for r in rows} == {"baseline", "oversample", "two_phase_oversample", "undersample"}


def test_a_last_layer_of_zeros_knows_nothing_at_first_and_one_under_a_relu_is_refused(images: Path):
    settings = tiny_settings(network={"name": "lenet5", "output_weights": "zero"})
    runtime = Runtime(torch.device("cpu"))
    some = open_images(settings.images, images, cache=None).train
    network = build_network(settings, some, seed=0, runtime=runtime)
    assert network(torch.rand(2, 1, 20, 20)).abs().max() == 0
    with pytest.raises(UsageError, match="'all_cnn' is followed by a ReLU"):
        build_network(
            tiny_settings(network={"name": "all_cnn", "output_weights": "zero"}),
            some,
            seed=0,
            runtime=runtime,
        )


def test_methods_share_their_set_and_every_training_has_equal_iterations(plain_rows: list[Row]):
    rows = plain_rows
    for rho in (4, 10):
        assert len({str(row["counts"]) + str(row["seed"]) for row in rows if row["rho"] == rho}) == 1
    assert {row["iterations"] for row in rows} == {10}
    assert {sum(row["seen"]) for row in rows} == {10 * 16}


def test_each_distribution_and_repeat_is_a_draw_of_its_own(images: Path):
    rows = rows_of(
        images, methods={"baseline": {}}, repeats=8, base=20, training={"iterations": 1, "batch_size": 4}
    )
    sets = {
        rho: [tuple(row["minority"]) for row in rows if row["rho"] == rho and row["decision"] == "argmax"]
        for rho in (4, 10)
    }
    assert sets[4] != sets[10]
    assert len({row["seed"] for row in rows}) == 16


def test_thresholding_by_either_prior_keeps_the_auc(plain_rows: list[Row]):
    rows = plain_rows
    for row in rows:
        plain = next(
            r for r in rows if (r["rho"], r["method"], r["decision"]) == (row["rho"], row["method"], "argmax")
        )
        assert row["auc"] == pytest.approx(plain["auc"], abs=1e-9)


def test_thresholding_divides_by_the_set_before_sampling_or_by_what_was_drawn(
    images: Path, monkeypatch: pytest.MonkeyPatch
):
    divided: list[np.ndarray] = []

    def spy(known: np.ndarray, *, prior: np.ndarray) -> np.ndarray:
        divided.append(prior)
        return divide_by_prior(known, prior=prior)

    monkeypatch.setattr("brats_seg.studies.image_cells.divide_by_prior", spy)
    row = rows_of(
        images,
        methods={"oversample": {}},
        distributions=[{"kind": "step", "rho": [10], "mu": [0.5], "minority": "lowest"}],
    )[0]
    assert row["counts"] == [4, 4, 40, 40]
    by_set, by_ledger = divided
    assert by_set == pytest.approx(np.array([4, 4, 40, 40]) / 88)
    assert by_ledger == pytest.approx(np.full(4, 0.25))


def test_the_same_seed_gives_the_same_network(images: Path, plain_rows: list[Row]):
    def scores(rows: list[Row]) -> list[float]:
        return [row["auc"] for row in rows]

    first = plain_rows
    assert scores(rows_of(images)) == scores(first)
    assert scores(rows_of(images, training={"iterations": 10, "batch_size": 16, "seed": 1})) != scores(first)


@pytest.mark.parametrize(
    ("network", "moves"),
    [
        ("lenet5", {"output"}),
        ("all_cnn", {"hidden", "output"}),
        ("two_class", {"output"}),
        ("resnet10", {"output"}),
    ],
)
@pytest.mark.parametrize("features_once", [True, False])
def test_the_second_phase_moves_the_last_layers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, moves: set[str], features_once: bool
):
    if not features_once:  # as with images that are cut anew each time
        monkeypatch.setattr("brats_seg.classification.fitting._is_fixed", lambda *_: False)
    settings = tiny_settings(network={"name": network}, training={"iterations": 3, "batch_size": 8})
    bench = bench_of(settings, write_images(tmp_path / "stripes.npz", side=32))
    config = remedy("oversample", Knobs()).config(settings, lr=settings.optimizer.lr, seed=0)
    shared: dict[str, Any] = {"config": config, "runtime": CPU, "looks": Looks()}
    built = build_network(settings, bench.available.set, seed=0, runtime=CPU)
    first = fit(built, bench.available, **shared)
    before = {name: weights.clone() for name, weights in first.network.state_dict().items()}
    second = alone(fitting_second_phase(first, bench.available, **shared))
    moved = {
        name.split(".")[0]
        for name, weights in second.network.state_dict().items()
        if not torch.equal(weights, before[name])
    }
    assert moved == moves
    assert all(torch.equal(weights, before[name]) for name, weights in first.network.state_dict().items())


def test_in_the_second_phase_nothing_is_dropped_and_no_statistics_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    modes: list[bool] = []
    make_learner = phases.Method.make_learner

    def spy(method: phases.Method, phase: phases.Phase, network: nn.Module, **others: Any) -> Learner:
        network.register_forward_pre_hook(
            lambda module, _: modes.extend(part.training for part in module.modules())
        )
        return make_learner(method, phase, network, **others)

    settings = tiny_settings(
        network={"name": "all_cnn"}, training={"iterations": 3, "batch_size": 8}
    )  # drops out in three places
    bench = bench_of(settings, write_images(tmp_path / "stripes.npz", side=32))
    built = build_network(settings, bench.available.set, seed=0, runtime=CPU)
    monkeypatch.setattr(phases.Method, "make_learner", spy)
    config = remedy("oversample", Knobs()).config(settings, lr=0.01, seed=0)
    first = Fitted(network=built)
    alone(fitting_second_phase(first, bench.available, config, runtime=CPU, looks=Looks()))
    assert modes
    assert not any(modes)


def test_the_second_phase_is_a_whole_schedule_at_a_tenth_of_the_rate(
    images: Path, monkeypatch: pytest.MonkeyPatch
):
    rates: list[float] = []

    def spy(*args: Any, schedule: Schedule, **others: Any) -> Learner:
        rates.append(schedule.optimizer.lr)
        return Learner(*args, schedule=schedule, **others)

    monkeypatch.setattr(phases, "Learner", spy)
    rows = rows_of(
        images,
        methods={"oversample": {"two_phase": True}},
        distributions=ONE_SET,
        search={"rates": [0.02]},
        training={"iterations": 60, "batch_size": 16},
        validation={"images": "test", "score": "loss", "every": 1, "patience": 1, "checkpoint": "best"},
    )
    first, second = (next(row for row in rows if row["phase"] == phase) for phase in (1, 2))
    assert rates == pytest.approx([0.02, 0.002])
    assert first["iterations"] < 60
    assert second["iterations"] == 60


def test_the_second_phase_is_at_the_natural_frequencies_of_the_set_itself(images: Path):
    sets = [{"kind": "step", "rho": [10], "mu": [0.5]}]
    rows = rows_of(images, methods={"smote": {"two_phase": True}}, distributions=sets)
    first, second = (next(row for row in rows if row["phase"] == phase) for phase in (1, 2))
    rare = first["minority"]
    assert min(first["seen"][k] for k in rare) > 20  # of 160 draws, 40 a class
    assert max(second["seen"][k] for k in rare) < 20  # 4 of 88 images: 7


def test_features_once_is_the_second_phase_in_full(images: Path, monkeypatch: pytest.MonkeyPatch):
    settings = tiny_settings(training={"iterations": 20, "batch_size": 8})
    bench = bench_of(settings, images)
    config = remedy("oversample", Knobs()).config(settings, lr=settings.optimizer.lr, seed=0)
    shared: dict[str, Any] = {"config": config, "runtime": CPU, "looks": Looks()}
    built = build_network(settings, bench.available.set, seed=0, runtime=CPU)
    first = fit(built, bench.available, **shared)
    quick = alone(fitting_second_phase(first, bench.available, **shared))
    monkeypatch.setattr("brats_seg.classification.fitting._is_fixed", lambda *_: False)
    full = alone(fitting_second_phase(first, bench.available, **shared))
    for ours, theirs in zip(
        quick.network.state_dict().values(), full.network.state_dict().values(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


WITHOUT_PRIOR = ("focal", "ldam", "lws", "mislas", "ncm", "remix", "tau_normalized", "top_k")
"""Remedies after which there is no prior to divide out."""
OF_REGIONS = ("focal_tversky", "tversky", "unified_focal")
"""Remedies that are refused for images: they compare regions of voxels."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_REGIONS])
def test_every_method_gives_rows(images: Path, name: str):
    validation = {"held_out": 5, "images": "held_out", "score": "auc", "every": 5}
    decisions = {"priors": ["set", "ledger"], "tuned": ["f_score"], "costs": (1 - np.eye(N_CLASSES)).tolist()}
    knobs = {"networks": 2, "neighbors": 2} | ({"hard": {"threshold": 0.9}} if name == "hard_replay" else {})
    asked: dict[str, Any] = {
        "distributions": ONE_SET,
        "methods": {name: knobs},
        "validation": validation,
        "decisions": decisions,
    }
    rows = rows_of(images, base=30, **asked)
    assert {row["part"] for row in rows} == {"test", "held_out"}
    assert {"argmax", "prior_set", "tuned_f_score", "costs"} <= {row["decision"] for row in rows}
    assert ("prior_ledger" in {row["decision"] for row in rows}) == (name not in WITHOUT_PRIOR)
    assert all(0.3 <= row["auc"] <= 1 for row in rows)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("class_weights", "baseline"),
        ("focal", "baseline"),
        ("logit_adjusted", "baseline"),
        ("deferred_weights", "baseline"),
        ("perturbed_copies", "oversample"),
    ],
)
def test_a_remedy_that_draws_like_another_learns_something_else(images: Path, name: str, plain: str):
    rows = rows_of(
        images,
        methods={plain: {}, name: {"weights_from": 0.5}},
        distributions=ONE_SET,
    )
    first, second = (next(row for row in rows if row["method"] == method) for method in (plain, name))
    assert np.abs(np.subtract(first["seen"], second["seen"])).max() == 0
    assert first["loss"] != second["loss"]


def test_replay_is_given_what_the_network_gets_wrong_or_is_unsure_of(
    images: Path, monkeypatch: pytest.MonkeyPatch
):
    pools: list[dict[int, np.ndarray]] = []
    monkeypatch.setattr(HardSampler, "accept_pools", lambda _, found: pools.append(found))
    settings = tiny_settings()
    pool = bench_of(settings, images).available

    class SureOfTwo(nn.Linear):
        """Calls every image class 0 with a probability of 0.72, class 1 with 0.26."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.72, 0.26, 0.01, 0.01]).log().expand(len(inputs), -1)

    for threshold, hard in ((0.7, 0), (0.75, 40)):  # a pass is ten batches
        knobs = Knobs.model_validate({"hard": {"threshold": threshold, "subset": None}})
        draw_steps(
            "hard_replay", knobs, pool, settings, n=11, network=SureOfTwo(1, 1)
        )  # a pass is ten batches
        assert {k: len(ids) for k, ids in pools[-1].items()} == {0: hard, 1: 40, 2: 40, 3: 40}


def test_half_of_the_test_images_validate_and_the_rest_are_scored(images: Path):
    rows = rows_of(
        images,
        distributions=ONE_SET,
        validation={"images": "half", "score": "auc", "every": 10},
        record={"curve_every": 5, "roc": True},
    )
    sizes = {row["part"]: row["n_test"] for row in rows}
    assert sizes == {"test": 80, "half": 40, "rest": 40}
    row = next(row for row in rows if row["part"] == "half" and row["decision"] == "argmax")
    assert row["validation"] == row["auc"]
    first = next(row for row in rows if row["part"] == "test" and row["decision"] == "argmax")
    assert [point["iteration"] for point in first["curve"]] == [5, 10]
    assert len(first["roc"]) == N_CLASSES
    for row in rows:
        low, high = row["auc_interval95"]
        assert low <= row["auc"] <= high


def test_training_images_that_validate_are_neither_trained_nor_scored_on(images: Path):
    settings = tiny_settings(
        base=30, validation={"held_out": 4, "images": "train", "per_class": 5, "score": "loss", "every": 5}
    )
    bench = bench_of(settings, images)
    assert bench.validation is not None
    pools = [bench.available, bench.parts["held_out"], bench.validation]
    assert [pool.index.counts.tolist() for pool in pools] == [[n] * N_CLASSES for n in (31, 4, 5)]
    assert len(np.unique(np.concatenate([pool.rows for pool in pools]))) == 40 * N_CLASSES
    assert set(bench.parts) == {"test", "held_out"}


def test_a_patient_is_held_out_or_validates_or_is_trained_on(tmp_path: Path):
    labels, patients = np.repeat([0, 1], 60), np.arange(120) // 3
    np.savez(tmp_path / "a.npz", images=np.zeros((120, 20, 20), np.uint8), labels=labels, patients=patients)
    knobs = {"held_out": 2, "images": "train", "per_class": 2, "score": "loss", "every": 5}
    settings = tiny_settings(base=20, validation=knobs)
    splits = load_images("npz", tmp_path / "a.npz")
    parts = [set(splits.train.patients[ids]) for ids in part_training(settings, splits.train)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set().union(*parts))
    halves = tiny_settings(base=20, validation={"images": "half", "score": "auc", "every": 5})
    with pytest.raises(
        UsageError, match=r"validation\.images 'half': would separate the images of a patient"
    ):
        check_study(halves, splits)


def test_training_stops_early_and_keeps_the_best(images: Path):
    patient = {"images": "test", "score": "auc", "every": 1, "patience": 2, "checkpoint": "best"}
    training = {"iterations": 500, "batch_size": 16}
    rows = rows_of(images, methods={"baseline": {}}, training=training, validation=patient)
    plain = [row for row in rows if row["decision"] == "argmax"]
    assert all(row["iterations"] < 500 for row in plain)
    assert all(row["auc"] == row["validation"] for row in plain)


def test_a_training_that_diverges_is_a_row_of_no_knowledge(images: Path):
    rows = rows_of(
        images,
        methods={"baseline": {}},
        search={"rates": [1e12]},
        training={"iterations": 30, "batch_size": 16},
    )
    assert all(row["diverged"] and row["auc"] == 0.5 for row in rows)


@pytest.mark.parametrize("rate", [1e12, 1e30])
@pytest.mark.parametrize("iterations", [1, 8])
@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_training_that_diverges_is_looked_at_all_the_same(
    images: Path, rate: float, iterations: int, checkpoint: str
):
    rows = rows_of(
        images,
        distributions=ONE_SET,
        methods={"oversample": {"two_phase": True}},
        search={"rates": [rate]},
        training={"iterations": iterations, "batch_size": 16},
        validation={"images": "test", "score": "loss", "every": 1, "checkpoint": checkpoint},
        record={"curve_every": 1},
    )
    json.dumps(rows, allow_nan=False)
    assert all((row["validation"] is None) == row["diverged"] for row in rows)


def test_validation_is_the_score_of_the_weights_that_are_kept(images: Path):
    for checkpoint in ("last", "best"):
        watched = {"images": "test", "score": "auc", "every": 1, "checkpoint": checkpoint}
        rows = rows_of(
            images,
            methods={"baseline": {}},
            training={"iterations": 12, "batch_size": 16},
            validation=watched,
        )
        assert all(row["validation"] == row["auc"] for row in rows if row["decision"] == "argmax")


def test_undersampling_draws_one_subset_or_a_new_one_each_epoch(images: Path):
    settings = tiny_settings(training={"iterations": 60, "batch_size": 16})
    bench = bench_of(settings, images)
    labels = bench.available.labels
    pool = bench.available.restrict(np.flatnonzero((labels != 0) | (np.arange(len(labels)) < 4)))
    seen = {}
    for redraw in ("never", "epoch"):
        draws = draw_steps("undersample", Knobs(redraw=redraw), pool, settings, n=60, network=nn.Linear(1, 1))
        ids = np.concatenate([draw.ids for draw in draws])
        seen[redraw] = np.bincount(pool.labels[np.unique(ids)], minlength=N_CLASSES).tolist()
    assert seen["never"] == [4, 4, 4, 4]
    assert seen["epoch"][0] == 4
    assert min(seen["epoch"][1:]) > 20
