"""Strategies side by side on a bank of small phantoms: what is finished is kept, and what cannot be compared
is refused.
"""

import json
import shutil
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from brats_seg import pipeline
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.build import BuildOptions
from brats_seg.cli import main
from brats_seg.core.config import Config, load_config, parse_config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.runtime import start_runtime
from brats_seg.core.settings import config_names, dump_config, parse_settings
from brats_seg.evaluation.run_rows import COLUMNS, DIGEST, LOOK_COLUMNS
from brats_seg.evaluation.scores import score_volume
from brats_seg.inference.dense import Feed, label_map
from brats_seg.inference.loaded import load_segmenters
from brats_seg.models.checkpoint import load_checkpoint
from brats_seg.models.trained import open_run
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.studies import advice, experiment, run_job
from brats_seg.studies.earlier import digest_of_schema_1, knobs_of_schema_1, rows_of
from brats_seg.studies.experiment import ExperimentReport, run_experiment
from brats_seg.studies.grid import GridWorkers, digest_of
from brats_seg.studies.run_job import RunJob, make_job
from brats_seg.studies.strategies import ExperimentConfig, load_experiment, look_epochs, make_strategies
from brats_seg.training.log import RunLog
from brats_seg.training.loop import Loop
from brats_seg.training.run import RunFolder

ONE = GridWorkers(n=1, device="cpu")
"""In this process."""
TINY: dict[str, Any] = {
    "base": "demo",
    "every": {
        "network.name": "unet2d",
        "network.channels": [8, 16],
        "network.num_res_units": 0,
        "patch.size": [32, 32],
        "training.epochs": 2,
        "training.steps": 4,
        "training.batch_size": 16,
        "validation.metric": "last",
    },
    "strategies": {
        "random": {"sampler": {"kind": "random"}},
        "hard": {"sampler.kind": "hard", "correct_priors": [0, 1, "tuned"]},
        "two": {"stages": [{"task.classes": "healthy_or_tumor"}, {"task.classes": "tumor"}]},
    },
    "folds": [0],
    "pictures": [],
}
THREE: dict[str, Any] = {"against": "random"}
"""The three strategies, each compared with the first alone: ten comparisons take a second."""


def tiny(**changes: Any) -> ExperimentConfig:
    return parse_settings(ExperimentConfig, {**TINY, **changes})


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("experiment")
    write_cohort(root / "scans", n_cases=6, layout="brats2013", size=48, seed=3)
    assert (
        pipeline.preprocess(
            root / "scans", root / "bank", workers=1, options=BuildOptions(n_folds=3)
        ).exit_code
        == 0
    )
    return root / "bank"


@pytest.fixture(scope="module")
def done(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentReport]:
    out = tmp_path_factory.mktemp("out")
    return out, run_experiment(bank, out, tiny(**THREE, pictures=None), on=ONE)


def test_every_strategy_and_variant_has_its_rows(bank: Path, done: tuple[Path, ExperimentReport]) -> None:
    out, report = done
    assert report.grid.failed == ()
    assert (report.grid.n_new, report.exit_code) == (3, 0)
    table = pd.read_csv(out / "runs.csv", dtype={"correct_priors": str})
    assert tuple(table.columns) == tuple(COLUMNS)
    opened = PatchBank(bank, patch_size=(32, 32))
    assert set(table["case"]) == set(opened.folds[0])
    assert len(table) == len(opened.folds[0]) * (3 + len(opened.classes)) * 5
    assert set(zip(table["strategy"], table["correct_priors"], strict=True)) == {
        ("random", "0"), ("hard", "0"), ("hard", "1"), ("hard", "tuned"), ("two", "0"),
    }  # fmt: skip
    hard = table[(table["strategy"] == "hard") & (table["region"] == "edema")]
    assert np.allclose(hard["requested_share"], 0.2)
    assert np.allclose(hard["center_share"], 0.2, atol=0.02)
    ledger = pd.read_csv(out / "runs" / "hard" / "fold0" / "seed0" / "ledger.csv").query("`class` == 'edema'")
    assert np.allclose(
        hard["distinct_share"], ledger["n_distinct"].sum() / ledger["n_draws"].sum(), atol=1e-6
    )
    assert set(table[table["strategy"] != "two"]["patches"]) == {2 * 4 * 16}
    assert (out / "runs" / "hard" / "fold0" / "seed0" / "checkpoint_best.pt").exists()
    assert "hard + priors 1 - random" in (out / "table.md").read_text()
    assert "data:image/png" in (out / "report.html").read_text()
    assert json.loads((out / "summary.json").read_text())["n_cases"] == len(opened.folds[0])


def test_label_maps_of_every_strength_are_those_of_its_class_shift(
    bank: Path, done: tuple[Path, ExperimentReport]
) -> None:
    """All strengths come from one pass over each volume; each is what a pass of its own gives."""
    run = done[0] / "runs" / "hard" / "fold0" / "seed0"
    trained, opened = open_run(run), PatchBank(bank, patch_size=(32, 32))
    (segmenter,) = load_segmenters((trained,), runtime=start_runtime(device="cpu", threads=1))
    assert sorted(path.name for path in run.glob("labels_*")) == [
        f"labels_held_out_{s}.npz" for s in ("0", "1", "tuned")
    ]
    for strength in ("0", "1"):
        shift = trained.networks[0].class_shift(float(strength))
        with np.load(run / f"labels_held_out_{strength}.npz") as kept:
            assert set(kept) == set(opened.folds[0])
            for number in opened.select(opened.folds[0]).selected:
                alone = label_map(
                    segmenter.network,
                    opened.volume(number)[0],
                    class_shift=shift,
                    feed=Feed(divisor=segmenter.divisor, window=segmenter.window),
                )
                assert np.array_equal(kept[opened.cases[number].id], alone)


def test_rows_of_another_machine_are_taken_over(
    bank: Path, done: tuple[Path, ExperimentReport], tmp_path: Path
) -> None:
    out, first = done
    said: list[str] = []
    report = run_experiment(
        bank, tmp_path / "there", tiny(**THREE), on=ONE, known=out / "runs.csv", say=said.append
    )
    assert said == [f"3 of 3 runs taken over from {out / 'runs.csv'}"]
    assert (report.grid.n_new, report.grid.n_kept) == (0, 3)
    assert report.summary["variants"] == first.summary["variants"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="other columns"):
        run_experiment(bank, tmp_path / "there", tiny(), on=ONE, known=tmp_path / "other.csv")


def test_a_known_table_of_other_runs_is_refused_before_the_first_run(
    bank: Path, done: tuple[Path, ExperimentReport], tmp_path: Path
) -> None:
    table = pd.read_csv(done[0] / "runs.csv", dtype=str, keep_default_na=False)
    bank_digest = table["bank"].iloc[0]
    with pytest.raises(
        InputError,
        match=r"none of its 3 runs is one of this experiment's, .* the same bank with other knobs or seeds",
    ):
        run_experiment(bank, tmp_path / "out", tiny(seeds=[9]), on=ONE, known=done[0] / "runs.csv")
    table.assign(bank="f" * 16, cell="e" * 16).to_csv(tmp_path / "foreign.csv", index=False)
    with pytest.raises(
        InputError,
        match=rf"none of its 1 runs is one of this experiment's, on bank {bank_digest}; they are of bank "
        rf"f{{16}}",
    ):
        run_experiment(bank, tmp_path / "out", tiny(), on=ONE, known=tmp_path / "foreign.csv")
    assert not (tmp_path / "out" / "rows.jsonl").exists()


def test_scans_are_advised_on_by_their_inner_cases(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_config("demo", overrides=tuple(f"{knob}={value}" for knob, value in TINY["every"].items()))
    (tmp_path / "base.yaml").write_text(dump_config(base))
    monkeypatch.setattr(advice, "FEWEST_STEPS", 4)
    out = tmp_path / "out"
    monkeypatch.setattr(advice, "MOST_STEPS", 3)
    with pytest.raises(UsageError, match="fewer than 4 show nothing"):
        advice.advise_on_scans(bank, out, minutes=60.0, base=str(tmp_path / "base.yaml"))
    monkeypatch.setattr(advice, "MOST_STEPS", 11)
    found = advice.advise_on_scans(bank, out, minutes=60.0, base=str(tmp_path / "base.yaml"))
    choice = advice.recommended("scans", np.array([60, 6]))
    assert {one.name for one in found.tried} == {"baseline", *choice.remedies}
    assert sum(one.best for one in found.tried) == pytest.approx(1)
    scored = set(pd.read_csv(out / "tried" / "runs.csv")["case"])
    assert scored == set(PatchBank(bank, patch_size=(32, 32)).folds[1])  # fold 0 is held out
    losses = [pd.read_csv(path)["loss"].iloc[-1] for path in (out / "tried").rglob("epochs.csv")]
    assert len(set(losses)) == len(losses) == 6  # no two remedies train the same network
    assert "8 steps" in found.page.read_text()  # 4 epochs of 2
    assert "baseline" in load_experiment(out / "full.yaml").strategies
    with pytest.raises(UsageError, match="out: holds a trial of remedies already; give another folder"):
        advice.advise_on_scans(bank, out, minutes=30.0, base=str(tmp_path / "base.yaml"))


def test_what_is_finished_is_written_where_an_experiment_is_interrupted(
    bank: Path, done: tuple[Path, ExperimentReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(job: RunJob, **where: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(bank, tmp_path, tiny(**THREE, seeds=[0, 1]), on=ONE, known=done[0] / "runs.csv")
    assert (tmp_path / "runs.csv").read_text() == (done[0] / "runs.csv").read_text()
    assert "**3 of 6 runs are finished" in (tmp_path / "table.md").read_text()
    assert "3 of 6 runs are finished" in (tmp_path / "report.html").read_text()


def test_one_strategy_alone_where_the_one_to_compare_with_is_another(bank: Path, tmp_path: Path) -> None:
    strategies = {"random": {"sampler.kind": "random"}, "balanced": {"sampler.kind": "balanced"}}
    report = run_experiment(
        bank, tmp_path, tiny(strategies=strategies, against="balanced"), on=ONE, only=["random"]
    )
    assert [v["label"] for v in report.summary["variants"]] == ["random"]
    assert "There is nothing to compare yet" in (tmp_path / "report.html").read_text()


def test_an_override_changes_one_setting_of_an_experiment_that_is_like_another() -> None:
    plain, changed = (
        load_experiment("hard_threshold_quick", overrides=o)
        for o in ((), ("strategies.balanced.optimizer.lr=1e-4",))
    )
    assert changed.strategies.keys() == plain.strategies.keys()
    (balanced,) = make_strategies(changed, only=["balanced"])
    assert (balanced.configs[0].sampler.kind, balanced.configs[0].optimizer.lr) == ("balanced", 1e-4)
    inner = load_experiment("prior_correction_quick", overrides=("predict.cases=inner", "pictures=[random]"))
    assert inner.predict.correct_priors == load_experiment("prior_correction").predict.correct_priors
    with pytest.raises(UsageError, match="--set like=sampling: name that experiment with --config"):
        load_experiment("confirm", overrides=("like=sampling",))


def test_a_strategy_says_which_scores_pick_its_runs():
    by_last, by_score = (
        make_strategies(tiny(every={**TINY["every"], "validation.metric": metric}))
        for metric in ("last", "mean_dice")
    )
    _, hard, two = by_last
    assert hard.picked_on(cases="held_out") == {
        ("hard", "0"): "",
        ("hard", "1"): "",
        ("hard", "tuned"): "validation",
    }
    assert two.picked_on(cases="inner") == {("two", "0"): ""}
    assert by_score[0].picked_on(cases="held_out") == {("random", "0"): "validation"}
    assert by_score[0].picked_on(cases="inner") == {("random", "0"): "test"}


def test_nested_knobs_are_laid_over_what_an_experiment_is_like(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(
        "base: demo\nevery: {training: {epochs: 3, steps: 7}}\nstrategies: {one: {}, two: {optimizer: {lr: "
        "0.01}, stages: [{optimizer: "
        "{weight_decay: 0.5}, task.classes: healthy_or_tumor}, {task.classes: tumor}]}}\n"
    )
    (tmp_path / "child.yaml").write_text(
        f"like: {tmp_path / 'parent.yaml'}\nevery: {{training: {{steps: 9}}}}\n"
    )
    one, two = make_strategies(load_experiment(tmp_path / "child.yaml"))
    assert (one.configs[0].training.epochs, one.configs[0].training.steps) == (3, 9)
    assert (
        two.configs[0].optimizer.lr,
        two.configs[0].optimizer.weight_decay,
        two.configs[1].optimizer.lr,
    ) == (0.01, 0.5, 0.01)


@pytest.mark.parametrize(
    ("every", "knobs", "flip"),
    [
        ({}, {"augment": "strong"}, 0.5),
        ({}, {"augment": {"preset": "strong"}}, 0.5),
        ({}, {"augment.preset": "strong"}, 0.5),
        ({"augment": "strong"}, {}, 0.5),
        ({"augment": "strong"}, {"augment.flip": 0.0}, 0.0),
        ({"augment": "light"}, {"augment": {"preset": "strong", "flip": 0.0}}, 0.0),
    ],
)
def test_a_preset_stands_for_every_knob_of_what_it_is_laid_over(
    every: dict[str, Any], knobs: dict[str, Any], flip: float
) -> None:
    config = ExperimentConfig(base="unet2d_cpu", every=every, strategies={"one": knobs})
    (strategy,) = make_strategies(config)
    strong = parse_config({"augment": "strong"}).augment
    assert strategy.configs[0].augment == strong.model_copy(update={"flip": flip})


def test_rows_that_stand_twice_count_once_and_missing_ones_are_named(
    bank: Path, done: tuple[Path, ExperimentReport], tmp_path: Path
) -> None:
    out, first = done
    head, *rows = (out / "runs.csv").read_text().splitlines(keepends=True)
    (tmp_path / "twice.csv").write_text("".join([head, *rows, *rows[:20]]))
    report = run_experiment(bank, tmp_path / "twice", tiny(**THREE), on=ONE, known=tmp_path / "twice.csv")
    assert (tmp_path / "twice" / "runs.csv").read_text() == (out / "runs.csv").read_text()
    assert report.summary["differences"] == first.summary["differences"]
    (tmp_path / "cut.csv").write_text("".join([head, *rows[:-3]]))
    with pytest.raises(InputError, match=r"cut\.csv: 3 of the 16 rows of two/fold0/seed0 are missing"):
        run_experiment(bank, tmp_path / "cut", tiny(), on=ONE, known=tmp_path / "cut.csv")
    assert not (tmp_path / "cut" / "rows.jsonl").exists()


def test_what_is_finished_is_kept_and_a_grown_experiment_trains_what_is_new(
    bank: Path, done: tuple[Path, ExperimentReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = done
    monkeypatch.setattr(experiment.pipeline, "train", None)  # would fail if it were called
    again = run_experiment(bank, out, tiny(**THREE), on=ONE, only=["random", "hard"])
    assert (again.grid.n_new, again.grid.n_kept) == (0, 2)
    assert again.grid.rows == tuple(row for row in first.grid.rows if row["strategy"] != "two")
    assert {row["strategy"] for row in pd.read_csv(out / "runs.csv").to_dict("records")} == {
        "random",
        "hard",
        "two",
    }
    assert again.summary["variants"] == first.summary["variants"]


def test_a_strategy_whose_knobs_were_changed_is_refused_and_one_scored_in_more_ways_is_not_trained_again(
    bank: Path, tmp_path: Path
) -> None:
    run_experiment(bank, tmp_path, tiny(strategies={"one": {}}), on=ONE)
    with pytest.raises(
        InputError,
        match=r"runs/one/fold0/seed0: was trained with other knobs .* strategy 'one'; give .* another name",
    ):
        run_experiment(bank, tmp_path, tiny(strategies={"two": {}, "one": {"optimizer.lr": 1e-5}}), on=ONE)
    assert not (tmp_path / "runs" / "two").exists()
    trained = (tmp_path / "runs" / "one" / "fold0" / "seed0" / "timing.csv").read_bytes()
    report = run_experiment(bank, tmp_path, tiny(strategies={"one": {"correct_priors": [0, 1]}}), on=ONE)
    assert [v["label"] for v in report.summary["variants"]] == ["one", "one + priors 1"]
    assert (tmp_path / "runs" / "one" / "fold0" / "seed0" / "timing.csv").read_bytes() == trained


def test_a_stopped_training_leaves_no_row_and_goes_on(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = pipeline.train
    seen = []

    def stopped(*arguments: Any, **more: Any) -> Any:
        seen.append(more["resume"])
        result = train(*arguments, **more)
        return type(result)(**{**vars(result), "ended": "stopped"})

    with monkeypatch.context() as patch:
        patch.setattr(experiment.pipeline, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(bank, tmp_path, tiny(), on=ONE, only=["random"])
    assert seen == [True]
    assert not (tmp_path / "rows.jsonl").exists()
    assert run_experiment(bank, tmp_path, tiny(), on=ONE, only=["random"]).grid.n_new == 1


def test_a_failed_run_is_named_and_the_others_stand(bank: Path, tmp_path: Path) -> None:
    config = tiny(strategies={"random": {"sampler.kind": "random"}, "odd": {"optimizer.lr": 1e30}})
    report = run_experiment(bank, tmp_path, config, on=ONE)
    assert report.exit_code == 1
    assert report.grid.failed[0][0] == "odd/fold0/seed0"
    assert "the loss is" in report.grid.failed[0][1]
    assert "the loss is" in (tmp_path / "report.html").read_text()


def test_runs_are_trained_seed_by_seed_and_fold_by_fold(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, int, str]] = []

    def noted(job: RunJob, **where: Any) -> Any:
        trained.append((job.seed, job.fold, job.strategy))
        raise InputError("not today")

    monkeypatch.setattr(experiment, "run_cell", noted)
    run_experiment(
        bank,
        tmp_path,
        tiny(strategies={"one": {}, "another": {"optimizer.lr": 1e-4}}, folds=[0, 1], seeds=[1, 0]),
        on=ONE,
    )
    assert trained == [
        (seed, fold, name) for seed in (1, 0) for fold in (0, 1) for name in ("one", "another")
    ]


def test_the_first_strategy_is_the_configs_even_where_its_first_run_failed(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cell = experiment.run_cell

    def failing(job: RunJob, **where: Any) -> Any:
        if (job.strategy, job.fold) == ("random", 0):
            raise InputError("the disk was pulled out")
        return run_cell(job, **where)

    monkeypatch.setattr(experiment, "run_cell", failing)
    strategies = {"random": {"sampler.kind": "random"}, "balanced": {"sampler.kind": "balanced"}}
    report = run_experiment(bank, tmp_path, tiny(strategies=strategies, folds=[0, 1]), on=ONE)
    assert len(report.grid.failed) == 1
    assert [v["label"] for v in report.summary["variants"]] == ["random", "balanced"]
    (difference,) = report.summary["differences"]
    assert (difference["from"], difference["to"], difference["n_runs"]) == ("random", "balanced", 1)


def test_settings_that_cannot_be_are_refused_before_the_first_run(bank: Path, tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UsageError, match=match):
            run_experiment(bank, tmp_path / "none", tiny(**changes), on=ONE)

    refused("seeds: 1 is given twice", seeds=[1, 0, 1])
    refused("folds: 2 is given twice", folds=[2, 2])
    refused(r"folds: 7 is not a fold of .*; it has 0..2", folds=[7])
    refused(
        "strategy 'odd': .*sampler.knd.*did you mean 'sampler.kind'",
        strategies={"odd": {"sampler.knd": "random"}},
    )
    refused(
        "strategy 'odd': .*correct_priors.1.*'tuned'.*got 'no'",
        strategies={"odd": {"correct_priors": [0.1, "no"]}},
    )
    refused(
        "strategy 'focal': .*no prior that is known",
        strategies={"focal": {"loss.kind": "focal", "correct_priors": [0, 1]}},
    )
    refused("strategy 'one': stages are two", strategies={"one": {"stages": [{}]}})
    refused(
        "strategy 'odd': .*no class 'ivory'",
        strategies={"odd": {"sampler": {"kind": "ratio", "shares": {"ivory": 1.0}}}},
    )
    refused(
        "strategy 'odd': hard.classes: no class",
        strategies={"odd": {"sampler.kind": "hard", "hard.classes": ["ivory"]}},
    )
    refused(
        "strategy 'odd': network.name 'unet4d' is unknown", strategies={"odd": {"network.name": "unet4d"}}
    )
    refused("strategy 'odd': patch.size 33 x 33", strategies={"odd": {"patch.size": [33, 33]}})
    refused(
        r"strategy 'odd': patch.size \(512, 512\): larger than",
        strategies={"one": {}, "odd": {"patch.size": [512, 512]}},
    )
    refused(
        "phantoms.two: traits: no trait 'edma'",
        phantoms={"one": {"cases": 4}, "two": {"traits": {"edma": 0.1}}},
    )
    refused(
        "strategy 'two': is the same computation as 'one'",
        strategies={"one": {}, "two": {"hard.threshold": 0.75}},
    )
    refused("against: no variant 'bald'; there are random, hard, hard . priors 1", against="bald")
    refused("pictures: no variant 'hard . priors 0.5'", pictures=["hard + priors 0.5"])
    refused("strategy 'hard': correct_priors 'tuned' is found on the inner cases", predict={"cases": "inner"})
    refused("is a bank, but the config builds phantoms", phantoms={"one": {"cases": 4}})
    (tmp_path / "loop.yaml").write_text(f"like: {tmp_path / 'loop.yaml'}")
    with pytest.raises(UsageError, match="which is like this one"):
        load_experiment(tmp_path / "loop.yaml")
    with pytest.raises(
        UsageError, match=r"--only bald: no strategy has this name; the strategies are random, hard, two"
    ):
        run_experiment(bank, tmp_path / "none", tiny(), only=["bald"])
    with pytest.raises(UsageError, match=r"strategies.\.\./out"):
        tiny(strategies={"../out": {}})
    with pytest.raises(UsageError, match="without strategies"):
        load_experiment("sampling", overrides=("strategies={}",))
    assert not (tmp_path / "none").exists()


def test_a_bank_that_changed_between_two_runs_is_refused(
    bank: Path, done: tuple[Path, ExperimentReport], tmp_path: Path
) -> None:
    copy = tmp_path / "bank"
    shutil.copytree(bank, copy)
    listed = json.loads((copy / "bank.json").read_text())
    listed["cases"][0]["patient"] = "another"
    (copy / "bank.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match=r"its bank is '[0-9a-f]{16}', this one's '[0-9a-f]{16}'"):
        run_experiment(copy, done[0], tiny(), on=ONE, only=["random"])


def test_a_bank_whose_volumes_were_changed_is_refused_before_the_first_run(
    bank: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "bank"
    shutil.copytree(bank, copy)
    volume = next((copy / "cases").glob("*/image.npy"))
    with volume.open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 4000)
    with pytest.raises(InputError, match=rf"{volume.parent.name}: .*image\.npy: has changed: SHA-256"):
        run_experiment(copy, tmp_path / "out", tiny(), on=ONE)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_training_fold_that_lacks_a_class_is_named(bank: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bank"
    shutil.copytree(bank, copy)
    opened = PatchBank(copy, patch_size=(32, 32))
    listed = json.loads((copy / "bank.json").read_text())
    necrosis = opened.classes.index("necrotic_core")
    for case in listed["cases"]:
        if case["id"] not in opened.folds[1]:
            case["counts"][necrosis] = 0
            case["offsets"] = [0, *accumulate(case["counts"])]
    (copy / "bank.json").write_text(json.dumps(listed))
    with pytest.raises(
        InputError,
        match=r"training cases of fold 1, seed 0 have no voxel of necrotic_core, which other folds have",
    ):
        run_experiment(copy, tmp_path / "out", tiny(folds=[1]), on=ONE)


def test_inner_cases_cannot_be_scored_where_there_are_none(bank: Path, tmp_path: Path) -> None:
    strategies = {"all": {"validation.cases": "none", "validation.metric": "last"}}
    with pytest.raises(UsageError, match=r"strategy 'all': validation\.cases 'none' leaves no inner"):
        run_experiment(bank, tmp_path / "out", tiny(strategies=strategies, predict={"cases": "inner"}))


def test_a_search_on_inner_cases_opens_no_held_out_fold(bank: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bank"
    shutil.copytree(bank, copy)
    opened = PatchBank(copy, patch_size=(32, 32))
    for case in opened.folds[0]:
        shutil.rmtree(copy / "cases" / case)
    strategies = {"hard": {"sampler.kind": "hard", "correct_priors": [0, 0.5]}}
    report = run_experiment(
        copy, tmp_path / "out", tiny(strategies=strategies, predict={"cases": "inner"}), on=ONE
    )
    assert report.grid.failed == ()
    scored = {row["case"] for row in report.grid.rows}
    assert scored
    assert not scored & set(opened.folds[0])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "of the inner splits" in page
    assert "of the held-out folds" not in page
    trained = next(case.id for case in opened.cases if case.id not in scored | set(opened.folds[0]))
    with (copy / "cases" / trained / "image.npy").open("r+b") as file:
        file.seek(2000)
        file.write(b"\xff" * 4000)
    with pytest.raises(InputError, match=rf"{trained}: .*image\.npy: has changed: SHA-256"):
        run_experiment(
            copy,
            tmp_path / "again",
            tiny(strategies=strategies, predict={"cases": "inner"}),
            on=ONE,
        )


def test_a_bank_that_changes_under_a_running_experiment_is_not_trained_on(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (strategy,) = make_strategies(tiny(), only=["random"])
    job = make_job(strategy, data="", bank="0" * 64, fold=0, seed=0, cases="held_out")
    monkeypatch.setattr(experiment.pipeline, "train", None)  # would fail if it were called
    with pytest.raises(InputError, match="has changed since the experiment started"):
        experiment.run_cell(job, banks={"": bank}, out=tmp_path, device="cpu")


def test_cohorts_that_differ_in_a_trait_are_made_and_compared_apart(tmp_path: Path) -> None:
    cohort = {"cases": 3, "size": 48}
    config = tiny(
        every={**TINY["every"], "training.epochs": 1},
        strategies={"random": {"sampler.kind": "random"}, "balanced": {}},
        phantoms={
            "plain": cohort,
            "faint": {**cohort, "traits": {"contrast": 0.6}},
            "larger": {**cohort, "traits": {"edema": 0.022}},
        },
    )
    report = run_experiment(tmp_path / "banks", tmp_path / "out", config, on=ONE)
    assert [(v["data"], v["label"]) for v in report.summary["variants"]] == [
        (data, strategy) for data in ("plain", "faint", "larger") for strategy in ("random", "balanced")
    ]  # fmt: skip
    assert [d["data"] for d in report.summary["differences"]] == ["plain", "faint", "larger"]
    assert [(c["data"], c["than"]) for c in report.summary["changes"]] == [
        ("faint", "plain"),
        ("larger", "plain"),
    ]
    plain, larger = (
        PatchBank(tmp_path / "banks" / name / "bank", patch_size=(1, 1)).cases for name in ("plain", "larger")
    )
    assert [sum(case.n_voxels) for case in plain] == [sum(case.n_voxels) for case in larger]  # one brain
    assert all(a.n_voxels[2] < b.n_voxels[2] for a, b in zip(plain, larger, strict=True))  # and another tumor
    assert "faint: balanced - random" in (tmp_path / "out" / "table.md").read_text()
    (tmp_path / "banks" / "plain" / "bank" / "bank.json").unlink()  # as if killed while the bank was made
    assert run_experiment(tmp_path / "banks", tmp_path / "out", config, on=ONE).grid.n_kept == 6
    with pytest.raises(InputError, match=r"belongs to another cohort than phantoms.plain of the config"):
        run_experiment(
            tmp_path / "banks",
            tmp_path / "out",
            tiny(phantoms={"plain": {**cohort, "seed": 2}}),
            on=ONE,
        )


def test_scores_of_a_case_can_be_checked_by_hand(bank: Path) -> None:
    opened = PatchBank(bank, patch_size=(32, 32))
    case = next(case for case in opened.cases if case.n_voxels[4] > 0)
    tissue = np.array(opened.volume(opened.cases.index(case))[1])

    def by_region(labels: np.ndarray) -> dict[str, dict[str, Any]]:
        rows = score_volume(
            tissue,
            labels,
            case=case.id,
            patient=case.patient,
            classes=opened.classes,
            spacing_mm=case.spacing_mm,
        )
        return {row["region"]: row for row in rows}

    perfect = by_region(np.where(tissue == 255, np.uint8(0), tissue))
    assert {row["dice"] for row in perfect.values() if row["n_reference_vox"]} == {1.0}
    assert perfect["healthy"]["n_reference_vox"] == int((tissue == 0).sum())
    nothing = by_region(np.zeros_like(tissue))
    n_healthy, n_brain = int((tissue == 0).sum()), int((tissue != 255).sum())
    assert nothing["healthy"]["dice"] == pytest.approx(2 * n_healthy / (n_healthy + n_brain), abs=1e-6)
    assert (nothing["whole"]["dice"], nothing["whole"]["volume_ratio"]) == (0, 0)


@pytest.mark.parametrize("name", config_names("experiments"))
def test_every_experiment_that_comes_with_the_package_resolves(name: str) -> None:
    config = load_experiment(name)
    strategies = make_strategies(config)
    assert all(one.training.threads == 1 for strategy in strategies for one in strategy.configs)
    if name.endswith("_quick"):
        whole = load_experiment(name.removesuffix("_quick"))
        assert config.strategies.keys() <= whole.strategies.keys()
        patches = {
            s.name: sum(c.training.epochs * c.training.steps for c in s.configs)
            for s in make_strategies(whole)
        }
        assert all(
            sum(c.training.epochs * c.training.steps for c in s.configs) < patches[s.name] for s in strategies
        )


def test_the_digest_of_a_cell_stands_for_every_knob() -> None:
    """Knobs at their defaults too: with another default it is another cell."""
    (strategy,) = make_strategies(load_experiment("sampling"), only=["balanced"])
    job = make_job(strategy, data="", bank="f" * 64, fold=0, seed=3, cases="held_out")
    (knobs,) = job.tree()["configs"]
    assert knobs == strategy.configs[0].model_dump(mode="json") | {"training": knobs["training"]}
    assert knobs["training"] == strategy.configs[0].training.model_dump(mode="json") | {"seed": 3}
    other = job.tree() | {"configs": [{**knobs, "hard": {**knobs["hard"], "threshold": 0.9}}]}
    assert digest_of(other) != job.digest


def test_the_digest_of_a_run_is_what_stored_rows_have() -> None:
    """A digest as the version before this one wrote it: rows of its runs.csv are found."""
    (strategy,) = make_strategies(load_experiment("sampling"), only=["balanced"])
    job = make_job(strategy, data="", bank="f" * 64, fold=0, seed=3, cases="held_out")
    assert job.digest[:DIGEST] == "7b5a0f2b389bf7a5"


def test_the_recorded_rows_are_those_of_the_configs_that_come_with_the_package() -> None:
    """A default that changes without its line in DEFAULTS_OF_SCHEMA_1 makes docs/experiments/data/runs.csv
    useless for --known.
    """
    table = pd.read_csv(Path(__file__).parents[1] / "docs/experiments/data/runs.csv")
    table["strategy"] = table["strategy"].replace("best", "drift_dice")  # its name until November 2026
    recorded = set(table[["strategy", "seed", "config"]].itertuples(index=False, name=None))
    named = set()
    for name, seed in product(config_names("experiments"), sorted(set(table["seed"]))):
        for strategy in make_strategies(load_experiment(name)):
            job = make_job(strategy, data="", bank="", fold=0, seed=seed, cases="held_out")
            trees = [knobs_of_schema_1(tree) for tree in job.trees]
            named.add((strategy.name, seed, digest_of({"configs": trees})[:DIGEST]))
    assert len(recorded) == 69
    assert recorded <= named


def test_rows_of_schema_1_are_taken_over_where_the_old_defaults_give_the_same_knobs(
    bank: Path, done: tuple[Path, ExperimentReport], tmp_path: Path
) -> None:
    recycled = {**TINY["strategies"]["hard"], "hard.recycle": True, "hard.subset": None}
    config = tiny(**THREE, strategies={**TINY["strategies"], "hard": recycled})
    table = pd.read_csv(done[0] / "runs.csv", dtype=str, keep_default_na=False)
    for strategy in make_strategies(config):
        trees = [one.model_dump(mode="json", exclude_defaults=True) for one in strategy.configs]
        for tree in trees:
            tree.pop("hard", None)  # recycle true and subset null were the defaults
        job = {
            "data": "",
            "bank": PatchBank(bank, patch_size=(1, 1)).digest,
            "strategy": strategy.name,
            "configs": trees,
            "correct_priors": list(strategy.correct_priors),
            "cases": "held_out",
            "fold": 0,
            "seed": 0,
        }
        table.loc[table["strategy"] == strategy.name, "cell"] = digest_of(job)[:DIGEST]
    table.to_csv(tmp_path / "old.csv", index=False)
    said: list[str] = []
    run_experiment(bank, tmp_path / "out", config, on=ONE, known=tmp_path / "old.csv", say=said.append)
    assert said == [f"3 of 3 runs taken over from {tmp_path / 'old.csv'}"]
    table[table["strategy"] == "hard"].to_csv(tmp_path / "old.csv", index=False)
    with pytest.raises(InputError, match=r"the defaults were hard\.recycle=true, hard\.subset=null"):
        run_experiment(bank, tmp_path / "new", tiny(), on=ONE, known=tmp_path / "old.csv")


def test_rows_of_schema_1_with_rotated_patches_are_not_taken_over() -> None:
    """Those patches had air in their corners: it was another training."""
    for name, n_rows in (("sampling", 1), ("confirm_real", 0)):
        (strategy,) = make_strategies(load_experiment(name), only=["balanced"])
        job = make_job(strategy, data="", bank="f" * 64, fold=0, seed=0, cases="held_out")
        finished = {digest_of_schema_1(job)[:DIGEST]: [{"case": "A"}]}
        assert len(rows_of(job, finished)) == n_rows


def test_a_folder_of_schema_1_is_refused_with_the_way_to_take_its_runs_over(
    bank: Path, done: tuple[Path, ExperimentReport], tmp_path: Path
) -> None:
    identity = json.loads((done[0] / "grid.json").read_text())
    del identity["schema"]
    (tmp_path / "grid.json").write_text(json.dumps(identity))
    with pytest.raises(
        InputError, match=r"written by another version .* choose a new folder .* with --known .*runs\.csv"
    ):
        run_experiment(bank, tmp_path, tiny(), on=ONE)


@pytest.mark.parametrize("name", ["confirm", "confirm_real"])
def test_what_is_confirmed_is_the_strategy_of_the_config_drift_dice(name: str) -> None:
    confirmed, packaged = (
        make_strategies(load_experiment(name), only=["drift_dice"])[0].configs[0],
        load_config("drift_dice"),
    )
    assert (confirmed.sampler, confirmed.loss, confirmed.hard, confirmed.phases) == (
        packaged.sampler,
        packaged.loss,
        packaged.hard,
        packaged.phases,
    )
    if name == "confirm_real":
        assert confirmed == packaged  # network, augmentation and budget too


def test_strategies_on_real_scans_differ_in_the_sampler_alone() -> None:
    strategies = {s.name: s.configs[0] for s in make_strategies(load_experiment("sampling_real"))}
    assert [*strategies] == ["random", "balanced", "hard", "case_first", "lesion_first", "drifting"]
    first = strategies["random"]
    for config in strategies.values():
        assert config.model_copy(update={"sampler": first.sampler}) == first
        assert config.sampler.jitter == 0.6
    assert first.network == load_config("recipe2d").network


def test_hard_replay_on_real_scans_takes_over_runs_of_the_six_strategies() -> None:
    """Runs of random and balanced have one digest in both experiments."""
    cells: dict[str, list[str]] = {}
    for name in ("sampling_real", "hard_real"):
        config = load_experiment(name)
        for strategy in make_strategies(config, only=["random", "balanced"]):
            looks, cases = config.predict.looks, config.predict.cases
            job = make_job(strategy, data="", bank="f" * 64, fold=0, seed=0, cases=cases, looks=looks)
            cells.setdefault(strategy.name, []).append(job.digest)
    assert all(one == other for one, other in cells.values())


# Looks


LOOKS: dict[str, Any] = {
    "every": {**TINY["every"], "training.epochs": 3, "training.steps": 2},
    "strategies": {"random": {"sampler.kind": "random"}, "balanced": {"sampler.kind": "balanced"}},
    "predict": {"looks": 2},
}


@pytest.fixture(scope="module")
def looked(bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("looked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_job, "_training_seconds", lambda run: {2: 20.0, 3: 30.0})
        assert run_experiment(bank, out, tiny(**LOOKS), on=ONE).grid.failed == ()
    return out


def test_looks_are_equally_spaced_and_end_with_the_run() -> None:
    assert look_epochs(10, 4) == (3, 5, 8, 10)
    assert look_epochs(20, 4) == (5, 10, 15, 20)
    assert look_epochs(3, 1) == (3,)
    assert look_epochs(3, 3) == (1, 2, 3)


def test_a_look_has_the_scores_of_the_weights_of_its_epoch(bank: Path, looked: Path, tmp_path: Path) -> None:
    table, runs = (
        pd.read_csv(looked / f"{name}.csv", dtype={"correct_priors": str}) for name in ("looks", "runs")
    )
    assert tuple(table.columns) == tuple(LOOK_COLUMNS)
    assert sorted(set(zip(table["epoch"], table["patches"], strict=True))) == [(2, 64), (3, 96)]
    end = table[table["epoch"] == 3].reset_index(drop=True)
    scores = ["strategy", "case", "region", "dice", "precision", "hd95_mm", "cell"]
    pd.testing.assert_frame_equal(end[scores], runs[scores])
    run = looked / "runs" / "random" / "fold0" / "seed0"
    assert sorted(set(table["training_s"])) == [20.0, 30.0]
    timing = pd.read_csv(run / "timing.csv")[["training_s", "mining_s"]].sum(axis=1)
    assert run_job._training_seconds(run)[2] == pytest.approx(timing[:2].sum(), abs=0.001)
    # A run that is stopped after two epochs has the same weights: the schedule is that of three epochs.
    assert load_checkpoint(run / "looks/epoch2/checkpoint_best.pt").epoch == 2
    (strategy,) = make_strategies(tiny(**LOOKS), only=["random"])
    train_two_epochs(bank, tmp_path / "run", strategy.configs[0])
    ours, theirs = (
        load_checkpoint(path / "checkpoint_best.pt").weights
        for path in (run / "looks/epoch2", tmp_path / "run")
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def train_two_epochs(bank: Path, run: Path, config: Config) -> None:
    """Train until the first epoch of three whose tables are those of two epochs."""
    write, n_written = RunLog.write, [0]

    def stop(self: RunLog, *, is_last: bool) -> None:
        write(self, is_last=is_last)
        n_written[0] += 1
        if n_written[0] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(bank, run, config, fold=0, device="cpu")


def test_page_and_table_show_equal_patches_and_equal_time(looked: Path) -> None:
    text, page = ((looked / name).read_text() for name in ("table.md", "report.html"))
    _, head, after = text.partition("## Dice after equal training time")
    assert head
    assert "| balanced - random | " in after.partition("## Ledger")[0]
    assert "The learning rate falls over the whole run" in text
    assert "The learning rate falls over the whole run" in page
    assert 'id="equal-time"' in page
    summary = json.loads((looked / "summary.json").read_text())
    assert {v["label"] for v in summary["equal_time"]["variants"]} == {"random", "balanced"}


def test_without_looks_there_is_no_table_of_equal_time(done: tuple[Path, ExperimentReport]) -> None:
    assert not (done[0] / "looks.csv").exists()
    assert "equal training time" not in (done[0] / "table.md").read_text()
    assert "equal training time" not in (done[0] / "report.html").read_text()


def test_a_run_killed_after_a_look_ends_with_the_same_looks(bank: Path, looked: Path, tmp_path: Path) -> None:
    """Killed after the look of epoch 2 is written and before the checkpoint of that epoch is."""
    save = RunFolder.save

    def killed(self: RunFolder, loop: Loop) -> None:
        if loop.n_epochs == 2:
            raise KeyboardInterrupt
        save(self, loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(bank, tmp_path, tiny(**LOOKS), on=ONE, only=["random"])
    run = Path("runs/random/fold0/seed0")
    assert (tmp_path / run / "looks/epoch2/checkpoint_best.pt").exists()
    assert load_checkpoint(tmp_path / run / "checkpoint_last.pt").epoch == 1
    run_experiment(bank, tmp_path, tiny(**LOOKS), on=ONE, only=["random"])
    ours, theirs = (
        pd.read_csv(folder / "looks.csv").query("strategy == 'random'") for folder in (tmp_path, looked)
    )
    same = [name for name in LOOK_COLUMNS if name != "training_s"]
    pd.testing.assert_frame_equal(ours[same], theirs[same])


def test_looks_of_another_machine_are_taken_over_with_its_runs(
    bank: Path, looked: Path, tmp_path: Path
) -> None:
    report = run_experiment(bank, tmp_path / "out", tiny(**LOOKS), on=ONE, known=looked / "runs.csv")
    assert report.grid.n_new == 0
    assert (tmp_path / "out" / "looks.csv").read_bytes() == (looked / "looks.csv").read_bytes()
    shutil.copy(looked / "runs.csv", tmp_path / "runs.csv")
    with pytest.raises(InputError, match=r"looks\.csv: cannot be read"):
        run_experiment(bank, tmp_path / "other", tiny(**LOOKS), on=ONE, known=tmp_path / "runs.csv")
    lines = (looked / "looks.csv").read_text().splitlines(keepends=True)
    (tmp_path / "looks.csv").write_text("".join(line for line in lines if ",random," not in line))
    with pytest.raises(InputError, match=r"looks\.csv: has no rows of random/fold0/seed0"):
        run_experiment(bank, tmp_path / "other", tiny(**LOOKS), on=ONE, known=tmp_path / "runs.csv")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation.metric": "mean_dice"}, "validation.metric 'mean_dice' chooses an epoch; take 'last'"),
        ({"phases.two_phase": True}, "phases.two_phase"),
        ({"training.norm_statistics": "measured"}, "training.norm_statistics 'measured'"),
        ({"correct_priors": [0, "tuned"]}, "correct_priors 'tuned'"),
        ({"stages": [{"task.classes": "healthy_or_tumor"}, {"task.classes": "tumor"}]}, "stages"),
        ({"training.epochs": 1}, "it has 1 epochs: give as many looks at most"),
    ],
)
def test_looks_at_runs_that_have_none_are_refused(changes: dict[str, Any], words: str) -> None:
    config = tiny(strategies={"odd": changes}, predict={"looks": 2})
    with pytest.raises(UsageError, match=rf"predict\.looks 2: strategy 'odd': .*{words}"):
        make_strategies(config)


def test_a_run_that_was_trained_without_looks_has_none(bank: Path, tmp_path: Path) -> None:
    run_experiment(bank, tmp_path, tiny(strategies={"one": {}}), on=ONE)
    with pytest.raises(InputError, match="was trained with other knobs"):
        run_experiment(bank, tmp_path, tiny(strategies={"one": {}}, predict={"looks": 2}), on=ONE)


def test_the_verb(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = "every={" + ", ".join(f"{k}: {v}" for k, v in TINY["every"].items()) + "}"
    arguments = [
        "experiment", str(bank), str(tmp_path / "out"), "--config", "sampling_quick", "--workers", "1",
        "--device", "cpu",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--set", every, "--set", "folds=[0]", "--only", "random", "--only", "balanced"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "2 runs finished now, 0 before" in said
    assert "balanced - random" in said
