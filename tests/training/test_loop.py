import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from tiny_bank import CLASSES, SPLIT, Split, free_port, knobs, run, start_child, write_bank

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.gather import Batch, PatchMaps
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import BEST, LAST, PHASE_1, lock
from brats_seg.core.runtime import Runtime
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.sampler import Draw
from brats_seg.models.checkpoint import load_checkpoint, save_checkpoint
from brats_seg.training import log as training_log
from brats_seg.training import source, train
from brats_seg.training.loop import Loop
from brats_seg.training.run import RunFolder
from brats_seg.training.train import warn_of_seen_cases
from brats_seg.training.validation import InnerScores

CPU = Runtime(torch.device("cpu"), None, n_threads=1)
FILES = ("epochs.csv", "ledger.csv", "ledger_cases.csv", "config.yaml")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("loop") / "bank")


@pytest.fixture(scope="module")
def finished(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 3-epoch run with hard replay, augmentation and a running mean of the weights, never stopped."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    result = run(run_dir, bank, knobs())
    assert (result.ended, result.n_epochs, len(result.rows)) == ("done", 3, 3)
    return run_dir


def assert_same_run(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in (LAST, BEST):
        a, b = load_checkpoint(one / name), load_checkpoint(other / name)
        assert (a.epoch, a.step, a.score, a.effective_prior) == (b.epoch, b.step, b.score, b.effective_prior)
        assert all(torch.equal(value, b.weights[key]) for key, value in a.weights.items())
    states = [load_checkpoint(run_dir / LAST).resume for run_dir in (one, other)]
    assert states[0] is not None
    assert states[1] is not None
    assert all(
        torch.equal(v, states[1]["learner"]["network"][k]) for k, v in states[0]["learner"]["network"].items()
    )


def test_weights_that_may_have_seen_inner_cases_are_warned_of(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = load_checkpoint(finished / BEST)
    split = Split(train=("A",), inner=("B", "C"), held_out=("D",), fold=0)

    def said(*trained: str) -> str:
        caplog.clear()
        warn_of_seen_cases(replace(checkpoint, train_cases=trained, inner_cases=()), split)
        return " ".join(record.message for record in caplog.records)

    assert "was trained on 1 of the 2 inner cases (C)" in said("C", "E")
    assert "cannot choose the best epoch; validation.metric=last" in said("C", "E")
    assert "does not record its training cases" in said()
    assert said("A", "E") == ""


# What a run leaves


def test_a_run_leaves_everything_and_nothing_half_written(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {
        ".lock", *FILES, "timing.csv", "train.log", "progress.png", "environment.json", LAST, BEST,
    }  # fmt: skip


def test_the_checkpoint_says_what_was_trained_on_what(finished: Path) -> None:
    last, best = load_checkpoint(finished / LAST), load_checkpoint(finished / BEST)
    assert (last.epoch, last.step, last.fold) == (3, 0, 0)
    assert (last.train_cases, last.inner_cases, last.held_out_cases) == (
        SPLIT.train,
        SPLIT.inner,
        SPLIT.held_out,
    )
    assert last.effective_prior is not None
    assert sum(last.effective_prior) == pytest.approx(1)
    assert best.resume is None
    assert last.resume is not None
    # The weights to predict with are the running mean, not those being trained.
    assert any(not torch.equal(v, last.resume["learner"]["network"][k]) for k, v in last.weights.items())


def test_hard_examples_are_replayed_from_the_second_epoch_on(finished: Path) -> None:
    rows = [line.split(",") for line in (finished / "ledger.csv").read_text().splitlines()[1:]]
    n_hard = {epoch: sum(int(row[-1]) for row in rows if row[0] == epoch) for epoch in ("1", "2", "3")}
    assert n_hard["1"] == 0
    assert n_hard["2"] > 0
    assert n_hard["3"] > 0


@pytest.mark.usefixtures("drawn")
def test_it_learns(bank: Path, tmp_path: Path) -> None:
    config = knobs(
        training={"epochs": 2, "steps": 20}, optimizer={"lr": 0.01}, sampler={"kind": "balanced"},
        augment={"rotate_degrees": 0, "scale": (1.0, 1.0)},
    )  # fmt: skip
    result = run(tmp_path / "run", bank, config)
    assert result.best_score is not None
    assert result.best_score > 0.6
    assert (tmp_path / "run" / "progress.png").stat().st_size > 5000
    assert result.rows[1]["loss"] < result.rows[0]["loss"]


# Who is seen


def test_no_held_out_case_is_ever_opened(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {"batch": set(), "volume": set(), "ledger": set(), "candidates": set()}
    batch, volume, add, find = PatchBank.batch, PatchBank.volume, Ledger.add, source.find_hard

    def spy_batch(
        self: PatchBank, ids: np.ndarray, *, out: Batch | None = None, maps: PatchMaps | None = None
    ) -> Batch:
        seen["batch"] |= set((ids >> 32).tolist())
        return batch(self, ids, out=out, maps=maps)

    def spy_volume(self: PatchBank, case: int) -> tuple[np.ndarray, np.ndarray]:
        seen["volume"].add(case)
        return volume(self, case)

    def spy_add(self: Ledger, draw: Draw, counts: np.ndarray) -> None:
        seen["ledger"] |= set((draw.ids >> 32).tolist())
        add(self, draw, counts)

    def spy_find(*args: Any, candidates: dict[int, np.ndarray], **others: Any) -> dict[int, np.ndarray]:
        for ids in candidates.values():
            seen["candidates"] |= set((ids >> 32).tolist())
        return find(*args, candidates=candidates, **others)

    monkeypatch.setattr(PatchBank, "batch", spy_batch)
    monkeypatch.setattr(PatchBank, "volume", spy_volume)
    monkeypatch.setattr(Ledger, "add", spy_add)
    monkeypatch.setattr(source, "find_hard", spy_find)
    run(tmp_path / "run", bank, knobs())
    train, inner = {0, 1, 2}, {3}
    assert seen["batch"] == train
    assert seen["ledger"] == train
    assert seen["candidates"] == train
    assert seen["volume"] == train | inner  # training cases are mined in whole slices


def test_a_case_has_one_use() -> None:
    with pytest.raises(UsageError, match="B are in both 'train' and 'held_out'"):
        Split(train=("A", "B"), held_out=("B",))
    with pytest.raises(UsageError, match="there is no training case"):
        Split(train=())


def test_more_ranks_than_examples_are_one_line(bank: Path, tmp_path: Path) -> None:
    opened = PatchBank(bank, patch_size=(16, 16))
    eight = Runtime(torch.device("cpu"), rank=0, world_size=8)
    with pytest.raises(UsageError, match=r"training\.batch_size 6: 8 ranks need one example each; start at"):
        train.train(
            tmp_path, bank=opened, split=SPLIT, config=knobs(training={"batch_size": 6}), runtime=eight
        )


@pytest.mark.usefixtures("drawn")
def test_without_inner_cases_the_last_weights_are_the_best(bank: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "run", bank, knobs(training={"epochs": 2}), split=Split(train=("A", "B")))
    assert result.best_score is None
    assert load_checkpoint(tmp_path / "run" / BEST).epoch == 2
    assert (tmp_path / "run" / "progress.png").stat().st_size > 5000


def test_training_ends_where_the_score_stops_rising(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = iter([0.5, 0.4, 0.3, 0.2, 0.6])

    def score(*_: Any, **__: Any) -> InnerScores:
        return InnerScores(dice=dict.fromkeys(("whole", "core", "active"), 0.0), n_cases={}, value=next(fake))

    monkeypatch.setattr(source, "score_inner_cases", score)
    result = run(
        tmp_path / "run", bank, knobs(training={"epochs": 9, "steps": 1}, validation={"patience": 2})
    )
    assert (result.ended, result.n_epochs, result.best_epoch, result.best_score) == ("done", 3, 1, 0.5)
    assert load_checkpoint(tmp_path / "run" / BEST).epoch == 1


def test_the_last_epoch_can_be_taken_whatever_it_scores(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = iter([0.2, 0.6, 0.5])

    def score(*_: Any, **__: Any) -> InnerScores:
        return InnerScores(dice=dict.fromkeys(("whole", "core", "active"), 0.0), n_cases={}, value=next(fake))

    monkeypatch.setattr(source, "score_inner_cases", score)
    result = run(
        tmp_path / "run", bank, knobs(training={"epochs": 3, "steps": 1}, validation={"metric": "last"})
    )
    assert (result.best_epoch, result.best_score) == (3, 0.5)
    assert load_checkpoint(tmp_path / "run" / BEST).epoch == 3


# Going on


def test_a_used_folder_is_refused_and_an_empty_one_started(
    bank: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="holds a run; give --resume"):
        run(finished, bank, knobs())
    assert run(tmp_path / "new", bank, knobs(training={"epochs": 1, "steps": 1}), resume=True).n_epochs == 1
    (tmp_path / "new" / LAST).unlink()
    with pytest.raises(UsageError, match="holds a run; give --resume"):
        run(tmp_path / "new", bank, knobs())  # its best weights would be overwritten
    with pytest.raises(UsageError, match=r"--resume: training\.epochs is 3; the run has 1"):
        run(tmp_path / "new", bank, knobs(training={"steps": 1}), resume=True)  # and so they would here
    assert run(tmp_path / "new", bank, knobs(training={"epochs": 1, "steps": 1}), resume=True).n_epochs == 1


def test_a_folder_of_other_files_is_refused_and_left_as_it_is(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other files \(notes.txt\); give another folder"):
        run(tmp_path, bank, knobs())
    assert {file.name for file in tmp_path.iterdir()} - {".lock"} == {"notes.txt"}


def test_going_on_with_a_finished_run_changes_nothing(bank: Path, finished: Path) -> None:
    before = {name: (finished / name).read_bytes() for name in (*FILES, LAST)}
    assert run(finished, bank, knobs(), resume=True).n_epochs == 3
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_the_bar_names_the_epoch_of_its_figures(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []

    class Bar(Progress):
        def update(self, *args: Any, **changes: Any) -> None:
            notes.append(changes["note"])
            super().update(*args, **changes)

    monkeypatch.setattr(train, "progress_bar", lambda: Bar(console=Console(file=StringIO())))
    settings = knobs()
    run(tmp_path / "run", bank, settings)
    assert [note.split()[1] for note in notes] == [
        str(epoch) for epoch in (1, 2, 3) for _ in range(settings.training.steps)
    ]
    losses = pd.read_csv(tmp_path / "run" / "epochs.csv")["loss"]
    last_notes = notes[settings.training.steps - 1 :: settings.training.steps]
    assert [note.rpartition(" ")[2] for note in last_notes] == [f"{loss:.3f}" for loss in losses]


def test_a_locked_run_is_refused(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        lock(tmp_path / "run" / ".lock"),
        pytest.raises(InputError, match=r"\.lock: held by another process"),
    ):
        run(tmp_path / "run", bank, knobs())


@pytest.mark.parametrize("steps", [1, 6, 9, 12, 17])
def test_stopped_by_a_signal_and_resumed_is_uninterrupted(
    bank: Path, finished: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
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
    stopped = run(tmp_path / "run", bank, knobs())
    assert stopped.ended == "stopped"
    assert n_done == steps
    assert run(tmp_path / "run", bank, knobs(), resume=True).ended == "done"
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("damage", [{"ledger": {}}, {"learner": {"network": {}, "optimizer": {}}}])
def test_a_run_that_cannot_go_on_from_its_checkpoint_says_so_in_one_line(
    bank: Path, finished: Path, tmp_path: Path, damage: dict[str, Any]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    last = load_checkpoint(tmp_path / "run" / LAST)
    assert last.resume is not None
    save_checkpoint(tmp_path / "run" / LAST, replace(last, resume={**last.resume, **damage}))
    with pytest.raises(InputError, match=r"checkpoint_last\.pt: damaged, the run cannot be resumed: "):
        run(tmp_path / "run", bank, knobs(), resume=True)


def test_dropout_and_the_patch_path_of_a_3d_network_resume_too(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = knobs(
        network={"name": "unet3d", "dropout": 0.2, "channels": (4, 8)},
        patch={"size": (4, 16, 16)},
        hard={"subset": 40},
        training={"epochs": 2, "steps": 3, "batch_size": 3},
    )
    run(tmp_path / "whole", bank, config)
    score = source.score_inner_cases

    def score_then_signal(*args: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return score(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(source, "score_inner_cases", score_then_signal)
        assert run(tmp_path / "run", bank, config).n_epochs == 1
    torch.rand(3)  # the global generator stands elsewhere
    run(tmp_path / "run", bank, config, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_time_spent_on_checkpoints_is_no_training_time(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still but for a checkpoint, which takes 1,000 s, and a drawing of a batch, which
    takes 1 s.
    """
    now, save, draw = 0.0, RunFolder._save, Ledger.add

    def slow_save(self: RunFolder, loop: Loop, name: str, **others: Any) -> None:
        nonlocal now
        now += 1000 if name == LAST else 0
        save(self, loop, name, **others)

    def slow_draw(self: Ledger, *arguments: Any) -> None:
        nonlocal now
        now += 1
        draw(self, *arguments)

    monkeypatch.setattr(RunFolder, "_save", slow_save)
    monkeypatch.setattr(Ledger, "add", slow_draw)
    monkeypatch.setattr(training_log.time, "perf_counter", lambda: now)
    config = knobs(training={"epochs": 1, "steps": 3, "checkpoint_minutes": 1e-9})
    run(tmp_path / "run", bank, config)
    timing = pd.read_csv(tmp_path / "run" / "timing.csv")
    assert (timing["training_s"].item(), timing["checkpoint_s"].item()) == (
        3,
        2000,
    )  # saved after the first two steps


def test_a_checkpoint_every_few_epochs_and_a_crash_between(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = knobs(training={"epochs": 5, "steps": 2, "checkpoint_epochs": 2})
    n_done, add = 0, Ledger.add

    def add_and_crash(self: Ledger, draw: Draw, counts: np.ndarray) -> None:
        nonlocal n_done
        n_done += 1
        if n_done in (4, 4 + 6):  # the second step of epoch 2, then of epoch 3
            raise RuntimeError("out of memory")
        add(self, draw, counts)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", add_and_crash)
        for at in (None, 2):
            with pytest.raises(RuntimeError, match="out of memory"):
                run(tmp_path / "run", bank, config, resume=True)
            last = tmp_path / "run" / LAST
            assert (load_checkpoint(last).epoch if last.exists() else None) == at
    run(tmp_path / "run", bank, config, resume=True)
    run(tmp_path / "whole", bank, config)
    assert load_checkpoint(last).epoch == 5
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# Real processes

SLOW: dict[str, Any] = {
    "training": {"epochs": 2, "steps": 10, "checkpoint_minutes": 0.0005},
    "phases": {"two_phase": True, "epochs": 2},
}


def run_in_child(run_dir: Path, bank: Path) -> None:
    run(run_dir, bank, knobs(**SLOW), resume=True)


def kill_and_resume(bank: Path, run_dir: Path, *, seed: int, most: int, within_s: float) -> int:
    """Kill a run at a random moment after a new checkpoint, `most` times or until it ends by itself; how
    often it was killed.
    """
    dice, n_kills = random.Random(seed), 0
    while n_kills < most and killed(
        run_dir, [(run_in_child, run_dir, bank)], wait_s=dice.uniform(0, within_s)
    ):
        n_kills += 1
    run(run_dir, bank, knobs(**SLOW), resume=True)
    return n_kills


def killed(run_dir: Path, calls: list[tuple[Any, ...]], *, wait_s: float, after: str = LAST) -> bool:
    """Start processes, wait for a new checkpoint and some time more, and kill them; False where they ended by
    themselves before.
    """
    last = run_dir / after
    before = last.stat().st_mtime_ns if last.exists() else 0
    processes = [start_child(*call) for call in calls]
    while processes[0].is_alive() and (not last.exists() or last.stat().st_mtime_ns == before):
        time.sleep(0.002)
    time.sleep(wait_s)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    return any(process.exitcode == -signal.SIGKILL for process in processes)


def test_killed_runs_end_as_if_never_killed(bank: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", bank, knobs(**SLOW))
    in_phase_1 = killed(tmp_path / "run", [(run_in_child, tmp_path / "run", bank)], wait_s=0.02)
    in_phase_2 = killed(
        tmp_path / "run", [(run_in_child, tmp_path / "run", bank)], wait_s=0.02, after=PHASE_1
    )
    assert in_phase_1 or in_phase_2
    run(tmp_path / "run", bank, knobs(**SLOW), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*.part"))


@pytest.mark.campaign
def test_twenty_kills_end_as_if_never_killed(bank: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", bank, knobs(**SLOW))
    n_kills = 0
    while n_kills < 20:
        n_kills += kill_and_resume(bank, tmp_path / f"run{n_kills}", seed=n_kills, most=5, within_s=0.25)
    for folder in tmp_path.glob("run*"):
        assert_same_run(tmp_path / "whole", folder)


def rank_in_child(rank: int, port: int, run_dir: Path, bank: Path, changes: dict[str, Any]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank)
    )
    run(run_dir, bank, knobs(**changes), resume=True)


def two_ranks(run_dir: Path, bank: Path, changes: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What to start as processes."""
    port = free_port()
    return [(rank_in_child, rank, port, run_dir, bank, changes) for rank in range(2)]


@pytest.mark.campaign
def test_killed_ranks_end_as_if_never_killed(bank: Path, tmp_path: Path) -> None:
    for name, n_kills in (("whole", 0), ("run", 5)):
        for kill in range(n_kills):
            killed(tmp_path / name, two_ranks(tmp_path / name, bank, SLOW), wait_s=0.05 * kill)
        for process in [start_child(*call) for call in two_ranks(tmp_path / name, bank, SLOW)]:
            process.join()
            assert process.exitcode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_two_ranks_draw_what_one_draws_and_learn_the_same(bank: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"network": {"norm": "group"}, "training": {"epochs": 2}}
    ranks = [start_child(*call) for call in two_ranks(tmp_path / "two", bank, changes)]
    run(tmp_path / "one", bank, knobs(**changes))
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    one, two = (load_checkpoint(tmp_path / name / LAST) for name in ("one", "two"))
    for key, value in one.weights.items():
        torch.testing.assert_close(value, two.weights[key], atol=2e-3, rtol=1e-2)
    rows = [
        [line.split(",") for line in (tmp_path / name / "ledger.csv").read_text().splitlines()[1:7]]
        for name in ("one", "two")
    ]
    assert rows[0] == rows[1]  # the first epoch: the second one's draws follow from what was found hard


# When it goes wrong


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_voxels(bank: Path, tmp_path: Path) -> None:
    config = knobs(optimizer={"lr": 1e30, "kind": "sgd"}, sampler={"kind": "balanced"})
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+, on patches of A"):
        run(tmp_path / "run", bank, config)
    saved = json.loads((tmp_path / "run" / "bad_batch_rank0.json").read_text())
    assert len(saved["voxels"]) == 10
    assert {voxel["case"] for voxel in saved["voxels"]} <= {"A", "B", "C"}


def test_a_patch_the_network_cannot_halve_is_refused_before_anything_is_written(
    bank: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"patch\.size 15 x 15"):
        run(tmp_path / "run", bank, knobs(patch={"size": (15, 15)}))
    assert not (tmp_path / "run").exists()


def test_the_ledger_counts_the_voxels_that_the_loss_is_over(tmp_path: Path) -> None:
    bank = write_bank(tmp_path / "bank", names=("A", "B"), shape=(3, 40, 36))
    config = knobs(
        network={"name": "two_path", "channels": (2, 2)},
        patch={"size": (33, 33)},
        sampler={"kind": "balanced"},
        training={"epochs": 1, "steps": 2, "batch_size": 10},
    )
    run(tmp_path / "run", bank, config, split=Split(train=("A",), inner=("B",)))
    rows = [line.split(",") for line in (tmp_path / "run" / "ledger.csv").read_text().splitlines()[1:]]
    # 33 x 33 voxels in, one out: the center.
    assert [row[3:5] for row in rows] == [["0.2", "0.2"]] * 5 + [["0", "0"]]
    assert load_checkpoint(tmp_path / "run" / LAST).effective_prior == (0.2,) * 5


@pytest.mark.parametrize(
    ("kind", "classes"), [("healthy_or_tumor", ("healthy", "tumor")), ("tumor", CLASSES[1:])]
)
def test_the_stages_of_a_cascade_are_ordinary_runs(
    bank: Path, tmp_path: Path, kind: str, classes: tuple[str, ...]
) -> None:
    result = run(tmp_path / "run", bank, knobs(task={"classes": kind}, training={"epochs": 2, "steps": 2}))
    last = load_checkpoint(tmp_path / "run" / LAST)
    assert (last.classes, last.parsed_config().task.classes, len(last.natural_prior or ())) == (
        classes,
        kind,
        len(classes),
    )
    assert result.best_score is not None


def test_weighted_classes_shift_the_prior_that_is_saved(bank: Path, tmp_path: Path) -> None:
    config = knobs(
        loss={"class_weights": "balanced"}, sampler={"kind": "random"}, training={"epochs": 1, "steps": 20}
    )
    run(tmp_path / "run", bank, config)
    prior = load_checkpoint(tmp_path / "run" / LAST).effective_prior
    assert prior is not None
    natural = PatchBank(bank, patch_size=(16, 16)).select(SPLIT.train).index.counts
    assert prior[0] < natural[0] / natural.sum()
    focal = knobs(loss={"kind": "focal"}, training={"epochs": 1, "steps": 1})
    run(tmp_path / "focal", bank, focal)
    assert load_checkpoint(tmp_path / "focal" / LAST).effective_prior is None
