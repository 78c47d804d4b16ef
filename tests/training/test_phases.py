import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bank import SPLIT, knobs, run, write_bank

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.lesions import lesions_of_case
from brats_seg.core.config import Config
from brats_seg.core.errors import UsageError
from brats_seg.core.files import BEST, LAST, PHASE_1
from brats_seg.core.runtime import Runtime
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.sampler import Draw
from brats_seg.models.checkpoint import load_checkpoint
from brats_seg.models.networks import make_network, output_layer
from brats_seg.training import source
from brats_seg.training.phases import Method, Phase
from brats_seg.training.validation import InnerScores

CPU = Runtime(torch.device("cpu"), None, n_threads=1)
TWO: dict[str, Any] = {
    "network": {"dropout": 0.1},
    "phases": {"two_phase": True, "epochs": 2},
    "training": {"epochs": 2},
}
FILES = ("epochs.csv", "ledger.csv", "ledger_cases.csv", "config.yaml")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("phases") / "bank")


@pytest.fixture(scope="module")
def two_phases(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hard replay, augmentation, batch norm, dropout and a running mean in phase 1; never stopped."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    assert run(run_dir, bank, knobs(**TWO)).n_epochs == 4
    return run_dir


def rows_of(path: Path) -> list[dict[str, str]]:
    header, *lines = [line.split(",") for line in path.read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def method_of(bank: Path, config: Config) -> Method:
    return Method(
        config=config,
        index=PatchBank(bank, patch_size=(16, 16)).select(SPLIT.train).index,
        runtime=CPU,
    )


def fake_scores(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    following = iter(values)

    def score(*_: Any, **__: Any) -> InnerScores:
        return InnerScores(
            dice=dict.fromkeys(("whole", "core", "active"), 0.0), n_cases={}, value=next(following)
        )

    monkeypatch.setattr(source, "score_inner_cases", score)


# Two phases


def test_in_phase_2_nothing_moves_but_the_output_layer(two_phases: Path) -> None:
    config = knobs(**TWO)
    network = make_network(config.network, n_channels=4, n_classes=5, n_dims=2)
    learns = {id(p) for p in output_layer(config.network, network).parameters()}
    output = {name for name, parameter in network.named_parameters() if id(parameter) in learns}
    before, last = load_checkpoint(two_phases / PHASE_1), load_checkpoint(two_phases / LAST)
    assert last.resume is not None
    assert 0 < len(output) < 5
    assert any("running_var" in name for name in before.weights)
    for after in (last.weights, last.resume["learner"]["network"]):  # the running mean, and what is trained
        assert {
            name for name, value in before.weights.items() if not torch.equal(value, after[name])
        } == output


def test_phase_2_has_a_tenth_of_the_rate_on_a_whole_schedule_again(two_phases: Path) -> None:
    rates = [float(row["lr"]) for row in rows_of(two_phases / "epochs.csv")]
    assert rates[2:] == pytest.approx([0.1 * rate for rate in rates[:2]])
    assert [row["step"] for row in rows_of(two_phases / "epochs.csv")] == ["6", "12", "18", "24"]


def test_phase_2_draws_at_the_natural_frequencies_and_saves_its_own_prior(
    bank: Path, two_phases: Path
) -> None:
    counts = PatchBank(bank, patch_size=(16, 16)).select(SPLIT.train).index.counts
    ledger = [row for row in rows_of(two_phases / "ledger.csv") if row["class"] != "outside"]
    assert [float(row["requested_share"]) for row in ledger if row["epoch"] in ("1", "2")] == pytest.approx(
        [0.2] * 10
    )
    assert [float(row["requested_share"]) for row in ledger if row["epoch"] == "4"] == pytest.approx(
        (counts / counts.sum()).tolist()
    )
    assert (
        sum(int(row["n_hard"]) for row in ledger if row["epoch"] in ("3", "4"))
        == 0
        < sum(int(row["n_hard"]) for row in ledger)
    )
    last, before = load_checkpoint(two_phases / LAST), load_checkpoint(two_phases / PHASE_1)
    assert last.resume is not None
    voxels = last.resume["ledger"]["closed_voxels"][:, :-1]
    assert last.effective_prior == pytest.approx((voxels[2:].sum(0) / voxels[2:].sum()).tolist())
    assert before.effective_prior == pytest.approx((voxels[:2].sum(0) / voxels[:2].sum()).tolist())
    assert (before.epoch, before.step, before.resume) == (2, 0, None)


def test_the_best_checkpoint_is_of_phase_2(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scores(monkeypatch, 0.9, 0.8, 0.3, 0.2)
    result = run(tmp_path / "run", bank, knobs(**TWO | {"training": {"epochs": 2, "steps": 1}}))
    assert (result.best_epoch, result.best_score) == (3, 0.3)
    best = load_checkpoint(tmp_path / "run" / BEST)
    assert (best.epoch, best.score) == (3, 0.3)


def test_each_phase_ends_where_its_own_score_stops_rising(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scores(monkeypatch, 0.9, 0.8, 0.1, 0.2, 0.1, 0.7)
    changes = TWO | {
        "training": {"epochs": 5, "steps": 1},
        "phases": {"two_phase": True},
        "validation": {"patience": 1},
    }
    result = run(tmp_path / "run", bank, knobs(**changes))
    assert (result.n_epochs, result.best_epoch) == (5, 4)  # phase 1 is epochs 1 and 2, phase 2 is 3, 4 and 5
    assert load_checkpoint(tmp_path / "run" / PHASE_1).epoch == 2
    assert run(tmp_path / "run", bank, knobs(**changes), resume=True).n_epochs == 5


@pytest.mark.parametrize("steps", [8, 12, 13, 18, 20])
def test_stopped_in_either_phase_and_resumed_is_uninterrupted(
    bank: Path, two_phases: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_done = 0
    add = Ledger.add

    def add_and_signal(self: Ledger, draw: Draw, counts: np.ndarray) -> None:
        nonlocal n_done
        n_done += 1
        if n_done == steps:
            signal.raise_signal(signal.SIGTERM)
        add(self, draw, counts)

    monkeypatch.setattr(Ledger, "add", add_and_signal)
    assert run(tmp_path / "run", bank, knobs(**TWO)).ended == "stopped"
    assert n_done == steps
    assert run(tmp_path / "run", bank, knobs(**TWO), resume=True).ended == "done"
    assert_same_run(tmp_path / "run", two_phases)


def assert_same_run(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in (LAST, BEST, PHASE_1):
        a, b = load_checkpoint(one / name), load_checkpoint(other / name)
        assert (a.epoch, a.step, a.score, a.effective_prior) == (b.epoch, b.step, b.score, b.effective_prior)
        assert all(torch.equal(value, b.weights[key]) for key, value in a.weights.items())


def test_class_weights_do_not_hold_in_phase_2(bank: Path) -> None:
    method = method_of(bank, knobs(phases={"two_phase": True}, loss={"class_weights": "balanced"}))
    logits, targets = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4), dtype=torch.uint8)
    first, second = (
        method.loss_of(phase, epoch=phase.first_epoch)(logits, targets)
        for phase in (method.first(), Phase(2, 4, 6))
    )
    plain = method_of(bank, knobs()).loss_of(Phase(1, 1, 3), epoch=1)(logits, targets)
    assert torch.equal(second, plain)
    assert not torch.allclose(first, plain)


# Deferred weights, and priors


@pytest.mark.parametrize(
    ("weights_from", "epochs", "weighted"),
    [(0.0, 3, [1, 2, 3]), (0.5, 4, [3, 4]), (0.55, 100, list(range(56, 101))), (0.9, 3, [3])],
)
def test_deferred_weights_hold_from_their_share_of_the_epochs_on(
    bank: Path, weights_from: float, epochs: int, weighted: list[int]
) -> None:
    loss = {"class_weights": "balanced", "weights_from": weights_from}
    method = method_of(bank, knobs(loss=loss, training={"epochs": epochs}))
    logits, targets = torch.randn(1, 5, 4, 4), torch.ones((1, 4, 4), dtype=torch.uint8)
    values = [
        method.loss_of(method.first(), epoch=epoch)(logits, targets).item() for epoch in range(1, epochs + 1)
    ]
    assert [epoch for epoch, value in enumerate(values, start=1) if value != min(values)] == (
        weighted if len(weighted) < epochs else []
    )
    assert method.settled_from(method.first()) == weighted[0]


def test_the_prior_after_deferred_weights_is_that_of_the_weighted_epochs(bank: Path) -> None:
    config = knobs(loss={"class_weights": "balanced", "weights_from": 0.5}, training={"epochs": 2})
    method, ledger = method_of(bank, config), Ledger(PatchBank(bank, patch_size=(16, 16)).classes)
    for epoch, voxels in enumerate(([9, 1, 0, 0, 0, 5], [4, 1, 1, 1, 1, 5]), start=1):
        ledger.load_state_dict({**ledger.state_dict(), "voxels": np.array(voxels)})
        ledger.close_epoch(epoch, np.full(5, 0.2))
    before, after = (method.effective_prior(method.first(), ledger, epoch=epoch) for epoch in (1, 2))
    assert before is not None
    assert after is not None
    assert before.tolist() == [0.9, 0.1, 0, 0, 0]
    counts = method.index.counts
    product = (
        np.array([4, 1, 1, 1, 1]) / counts
    )  # balanced weights are 1 / count, times what is the same for all
    assert after == pytest.approx(product / product.sum())
    adjusted = method_of(bank, knobs(loss={"kind": "logit_adjusted", "tau": 0.5}))
    expected = np.array([13, 2, 1, 1, 1]) / np.sqrt(counts)
    assert adjusted.effective_prior(adjusted.first(), ledger, epoch=2) == pytest.approx(
        expected / expected.sum()
    )
    drifting = method_of(bank, knobs(sampler={"kind": "balanced", "drift": "to_natural"}))
    assert drifting.effective_prior(drifting.first(), ledger, epoch=2) == pytest.approx(
        np.array([4, 1, 1, 1, 1]) / 8
    )
    assert method.effective_prior(Phase(2, 3, 4), ledger, epoch=2) is None


def test_early_stopping_waits_for_the_weights(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scores(monkeypatch, 0.9, 0.5, 0.5, 0.4, 0.3, 0.2)
    config = knobs(
        loss={"class_weights": "balanced", "weights_from": 0.5},
        training={"epochs": 6, "steps": 1},
        validation={"patience": 1},
    )
    assert run(tmp_path / "run", bank, config).n_epochs == 4  # epoch 4 is the first with weights


# What does not go together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": {"accumulate": 11}},
            r"training\.accumulate 11: a batch of 10 examples has 1 to 10 parts",
        ),
        (
            {"patch": {"size": (2, 2)}, "training": {"accumulate": 6}},
            r"patch\.size 2 x 2: only one voxel is left at the lowest level for the batch norm",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    bank: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "run", bank, knobs(**changes))
    assert not (tmp_path / "run").exists()


# What is drawn first within a class


def test_lesions_drawn_first_survive_a_stop_and_phase_2_draws_every_voxel_alike(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {**TWO, "sampler": {"kind": "hard", "first": "lesion"}}
    run(tmp_path / "straight", bank, knobs(**changes))
    added, add = [], Ledger.add

    def add_and_signal(self: Ledger, draw: Draw, counts: np.ndarray) -> None:
        add(self, draw, counts)
        added.append(1)
        if len(added) == 9:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Ledger, "add", add_and_signal)
    assert run(tmp_path / "run", bank, knobs(**changes)).ended == "stopped"
    assert run(tmp_path / "run", bank, knobs(**changes), resume=True).ended == "done"
    for name in (*FILES, "ledger_lesions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    method = replace(
        method_of(bank, knobs(**changes)),
        number_lesions=partial(lesions_of_case, PatchBank(bank, patch_size=(16, 16)).cases),
    )
    assert method.make_sampler(method.first()).groups is not None
    assert method.make_sampler(Phase(2, 3, 4)).groups is None


def test_examples_without_lesions_are_refused(bank: Path) -> None:
    method = method_of(bank, knobs(sampler={"first": "lesion"}))
    with pytest.raises(
        UsageError, match=r"sampler\.first 'lesion': these examples have no lesions; use 'voxel' or 'case'"
    ):
        method.make_sampler(method.first())
