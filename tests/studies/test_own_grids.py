"""Studies of one-class detection and of a few shown images, on images that train in a second."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brats_seg.classification.few_shot import draw_episodes, fine_tuned
from brats_seg.classification.image_set import keep_classes
from brats_seg.classification.images import load_images
from brats_seg.classification.settings import FewShotSettings, NoveltySettings
from brats_seg.cli import main
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.settings import parse_settings
from brats_seg.studies import kinds
from brats_seg.studies.few_shot import few_shot_jobs, few_shot_size
from brats_seg.studies.grid import GridWorkers
from brats_seg.studies.kinds import OwnGrid, load_study, plan_grid, run_own_grid, write_own_table
from brats_seg.studies.novelty import crossing

ONE = GridWorkers(n=1, device="cpu")


def novelty(**changes: Any) -> NoveltySettings:
    tree: dict[str, Any] = {
        "study": "novelty", "images": {"name": "npz"}, "pairs": [["3", "0"]], "base": 40,
        "rho": [4, 40], "detector": {"iterations": 60, "batch_size": 16, "width": 4, "code": 4},
        "training": {"iterations": 30, "batch_size": 16}, "methods": {"oversample": {}},
    }  # fmt: skip
    return parse_settings(NoveltySettings, tree | changes)


def few_shot(**changes: Any) -> FewShotSettings:
    tree: dict[str, Any] = {
        "study": "few_shot", "images": {"name": "npz"}, "unseen": ["2", "3"], "ways": 2, "shots": [3],
        "queries": 5, "episodes": 20, "draws": 2, "width": 8, "train_queries": 3, "memory_iterations": 4,
        "training": {"iterations": 20, "batch_size": 16},
        "methods": ["prototypical", "fine_tune", "oversample"],
    }  # fmt: skip
    return parse_settings(FewShotSettings, tree | changes)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, each a bright stripe at its own height."""
    generator, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 50), ("test", 20)):
        labels = np.repeat(np.arange(4), n)
        pixels = generator.integers(0, 100, (len(labels), 20, 20), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[5 * label : 5 * label + 5] += 120
        arrays |= {f"{part}_images": pixels, f"{part}_labels": labels}
    path = tmp_path_factory.mktemp("stripes") / "stripes.npz"
    np.savez(path, **arrays)
    return path


def test_a_detector_that_saw_one_class_alone_finds_the_other(images: Path, tmp_path: Path):
    report = run_own_grid(novelty(), tmp_path, folder=images, on=ONE)
    assert report.failed == ()
    rows = list(report.rows)
    assert [(row["method"], row["rho"]) for row in rows[:7]] == [
        ("absolute", None), ("squared", None), ("mahalanobis", None), ("isolation_forest", None),
        ("deep_svdd", None), ("oversample", 4.0), ("oversample", 40.0),
    ]  # fmt: skip
    assert [row["n_rare"] for row in rows[:7]] == [0, 0, 0, 0, 0, 10, 1]
    assert all(row["auc"] > 0.95 for row in rows if row["method"] in ("absolute", "squared"))
    assert run_own_grid(novelty(), tmp_path, folder=images, on=ONE).n_new == 0
    text, paths = write_own_table(tmp_path)
    assert "| deep svdd | oversampling | 1 |" in text
    assert paths[0].read_text().count("\n") == 1 + 7 + 5
    # Rows of a knob that was changed since are not mixed in.
    grown = novelty(methods={"oversample": {}, "baseline": {}}, rho=[4])
    assert run_own_grid(grown, tmp_path, folder=images, on=ONE).n_new == 1
    assert "| oversampling | 40" not in write_own_table(tmp_path)[0]


def test_from_which_ratio_on_a_detector_is_better():
    detector = {"a": 0.9, "b": 0.9}
    falling = {10.0: {"a": 1.0, "b": 1.0}, 100.0: {"a": 0.95, "b": 0.95}, 1000.0: {"a": 0.85, "b": 0.85}}
    found = crossing(detector, falling)
    assert found == {"n": 2, **dict.fromkeys(("ratio", "low", "high"), pytest.approx(10**2.5))}
    assert crossing({"a": 0.8, "b": 0.8}, falling)["ratio"] is None
    assert crossing({"a": 1.1, "b": 1.1}, falling)["ratio"] == 0
    assert crossing({"c": 0.8}, falling)["n"] == 0  # of a study that is not finished
    # One pair alone: the detector wins for b from the beginning and for a never.
    split = crossing({"a": 0.8, "b": 1.1}, falling)
    assert (split["low"], split["high"]) == (0, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rho": [41]}, "rho 41 leaves no image of the rare class: base is 40; give 40 at most"),
        ({"base": 60, "rho": [2]}, "class 0 needs 60 examples but has 50"),
        ({"pairs": [["0", "eel"]]}, "images.classes 'eel' is unknown"),
        ({"methods": {"magic": {}}}, "methods.magic: 'magic' is not a method"),
        (
            {"methods": {"oversample": {"two_phase": True}}},
            "methods.oversample: one network of one phase each",
        ),
        ({"methods": {"rus_boost": {}}}, "methods.rus_boost: one network of one phase each"),
        ({"methods": {"mine": {"kind": "easy_ensemble"}}}, "methods.mine: one network of one phase each"),
        ({"methods": {"smote": {}}}, "methods.smote: one network of one phase each"),
        ({"methods": {"ncm": {}}}, "methods.ncm: one network of one phase each"),
        ({"methods": {"crt": {}}}, "methods.crt: one network of one phase each"),
    ],
)
def test_what_a_study_of_detectors_cannot_do_is_one_line(images: Path, tmp_path: Path, changes, said):
    with pytest.raises(UsageError) as refused:
        run_own_grid(novelty(**changes), tmp_path, folder=images, on=ONE)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "rows.jsonl").exists()


def test_classes_that_were_never_seen_are_told_apart_by_a_few_images(images: Path, tmp_path: Path):
    report = run_own_grid(few_shot(), tmp_path, folder=images, on=ONE)
    assert report.failed == ()
    found = {row["method"]: row for row in report.rows}
    assert (found["prototypical"]["n"], found["oversample"]["n"]) == (20, 2)
    assert found["prototypical"]["accuracy"] > 0.9
    text, _ = write_own_table(tmp_path)
    assert "| prototypical | 0 |" in text
    assert "Chance is 50.0 %." in text


def test_the_other_two_ways_to_learn_give_an_accuracy_too(images: Path, tmp_path: Path):
    settings = few_shot(methods=["matching", "memory"], training={"iterations": 4, "batch_size": 8})
    rows = run_own_grid(settings, tmp_path, folder=images, on=ONE).rows
    assert all(0 <= row["accuracy"] <= 1 and row["n"] == 20 for row in rows)


def test_episodes_take_shown_images_from_training_and_queries_from_test(images: Path):
    unseen = keep_classes(load_images("npz", images), ("2", "3"))
    episodes = draw_episodes(unseen, few_shot(), shots=3, seed=5)
    assert (episodes.shown.shape, episodes.queries.shape) == ((20, 2, 3), (20, 2, 5))
    assert (unseen.train.labels[episodes.shown] == episodes.classes[:, :, None]).all()
    assert (unseen.test.labels[episodes.queries] == episodes.classes[:, :, None]).all()
    later = draw_episodes(unseen, few_shot(), shots=3, seed=5, first=7, n=1)
    assert later.shown.tolist() == episodes.shown[7:8].tolist()


def test_a_fine_tuned_output_layer_tells_apart_what_a_line_can():
    support = torch.tensor([[[[0.0, 2.0]], [[2.0, 0.0]]]])
    scores = fine_tuned(support, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    assert scores.argmax(-1).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"shots": [1, 51]},
            "class '0' has 50 examples, but an episode needs 51; use fewer shots or queries",
        ),
        ({"queries": 21}, "class '0' has 20 examples, but an episode needs 21"),
        ({"unseen": ["eel"]}, "unseen 'eel': is not a class; the classes are 0, 1, 2, 3"),
        ({"unseen": ["3"]}, "ways 2: there are 1 unseen classes; use fewer ways"),
        ({"unseen": ["1", "2", "3"]}, "ways 2: there are 1 seen classes; use fewer ways"),
    ],
)
def test_what_a_study_of_few_images_cannot_do_is_one_line(images: Path, tmp_path: Path, changes, said):
    with pytest.raises(UsageError) as refused:
        run_own_grid(few_shot(**changes), tmp_path, folder=images, on=ONE)
    assert said in str(refused.value).replace("'2'", "'0'")
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_kind_of_study_that_does_not_exist(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("study: magic\n")
    with pytest.raises(UsageError, match="study 'magic' is unknown; give one of novelty, few_shot"):
        load_study(tmp_path / "mine.yaml")


def test_a_plan_counts_and_a_table_of_nothing_is_refused(images: Path, tmp_path: Path):
    settings: OwnGrid = few_shot(shots=[1, 3])
    said: list[str] = []
    counted, timed = plan_grid(settings, folder=images, store=None, say=said.append).splitlines()
    assert counted == "6 cells, 0 of them finished"
    assert re.fullmatch(r"1 workers: about \d+ minutes", timed)
    assert said == ["6 cells; measuring a part of a cell of each method"]
    (tmp_path / "study.yaml").write_text(json.dumps({"study": "few_shot", "unseen": ["2"]}))
    with pytest.raises(InputError, match="no finished cell of a study"):
        write_own_table(tmp_path)


def test_a_plan_is_of_a_step_and_a_twentieth_of_each_method(images: Path, monkeypatch: pytest.MonkeyPatch):
    """A cell takes 2 s and a second for each iteration. 100 iterations: a step takes 3 s and a twentieth 7 s,
    so that a cell is planned with 3 + 20 (7 - 3) = 83 s.
    """
    monkeypatch.setattr(
        kinds, "_seconds", lambda rows, job: 2.0 + rows.keywords["settings"].training.iterations
    )
    settings = novelty(training={"iterations": 100, "batch_size": 16})
    jobs = kinds.KINDS["novelty"].jobs(settings)
    assert [job.method for job in jobs] == ["one_class", "oversample", "oversample"]
    plan = plan_grid(settings, folder=images, store=None)
    assert plan.splitlines()[1] == f"1 workers: about {3 * 83 / 60:.0f} minutes"


def test_the_time_of_an_episode_goes_with_its_images():
    settings = few_shot(shots=[1, 5], train_queries=3)
    sizes = {job.key: few_shot_size(settings, job) for job in few_shot_jobs(settings)}
    assert sizes["prototypical, 5 shots, repeat 0"] == 2 * sizes["prototypical, 1 shots, repeat 0"]
    assert sizes["fine_tune, 5 shots, repeat 0"] == sizes["fine_tune, 1 shots, repeat 0"]


def test_the_verbs_of_a_study_take_the_other_kinds_too(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config, out = str(tmp_path / "mine.yaml"), str(tmp_path / "out")
    tree = few_shot(methods=["prototypical"]).model_dump(mode="json")
    Path(config).write_text(json.dumps(tree))

    def study(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["study", *words])
        return int(ended.value.code or 0)

    where = ("--images", str(images))
    assert study("run", config, out, *where, "--workers", "1", "--device", "cpu") == 0
    assert study("plan", config, "--out", out, *where) == 0
    assert study("table", out) == 0
    assert study("figures", out) == 0
    said = capsys.readouterr().out
    for line in ("1 cells finished, 0 finished before", "1 cells, 1 of them finished", "Chance is 50.0 %."):
        assert line in said
    assert (tmp_path / "out" / "figures" / "few_shot.png").is_file()
    assert study("run", config, out, *where, "--set", "shots=[51]") == 2
    assert capsys.readouterr().err.count("\n") == 1
