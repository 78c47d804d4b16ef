"""A study: what is planned, that it goes on where it was killed, that nothing is lost or doubled."""

import errno
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from striped_images import tiny_settings, write_images

from brats_seg.classification import bench, whitening
from brats_seg.classification.bench import config_digest
from brats_seg.classification.images import load_images
from brats_seg.classification.settings import StudySettings
from brats_seg.cli import main
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.settings import config_names, load_settings
from brats_seg.studies import study
from brats_seg.studies.grid import GridReport, GridWorkers
from brats_seg.studies.kinds import KINDS, load_study
from brats_seg.studies.store import Row
from brats_seg.studies.study import make_plan, run_study, study_jobs, study_rows, study_table
from brats_seg.studies.study_table import make_table, to_markdown

CLOCKS = ("seconds",)
ONE = GridWorkers(n=1, device="cpu")
"""In this process."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes.npz")


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GridReport]:
    """The tiny study, never stopped: its folder, which tests copy before they change it, and its report."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, run_study(tiny_settings(), out, folder=images, on=ONE)


def without_clocks(rows: list[Row]) -> list[str]:
    return sorted(repr({name: value for name, value in row.items() if name not in CLOCKS}) for row in rows)


def networks_of(name: str) -> tuple[int, int]:
    plan = make_plan(load_settings(StudySettings, name, shelf="studies"), folder=Path("nowhere"), workers=1)
    return plan.n_sets, plan.n_networks


def test_the_published_numbers_of_networks():
    assert networks_of("mnist") == (4050 + 450, 22_500)
    assert networks_of("imagenet") == (5, 15)
    assert networks_of("mnist_quick") == (
        18 + 6 + 1,
        90 + 6 + 1,
    )  # step; linear and balanced, the baseline alone
    assert networks_of("mnist_methods") == (3, 78)
    quick = make_plan(
        load_settings(StudySettings, "cifar10", shelf="studies"), folder=Path("nowhere"), workers=1
    )
    assert quick.n_networks == 480 + 160 + 8  # and the balanced set


@pytest.mark.parametrize("name", config_names("studies"))
def test_every_study_that_travels_along_can_be_planned(name: str):
    settings = load_study(name)
    is_usual = isinstance(settings, StudySettings)
    grid = study_jobs(settings) if is_usual else KINDS[settings.study].jobs(settings)
    assert len({cell.digest for cell in grid}) == len({cell.key for cell in grid}) == len(grid)


def test_stores_of_the_first_version_are_still_known():
    """Digests as that version wrote them; a knob that is added needs its line in `identity.LATER`."""
    settings = load_settings(StudySettings, "mnist_methods", shelf="studies")
    assert config_digest(settings) == "895d0305df6f"
    assert study_jobs(settings)[0].digest.startswith("a8311226901c")


def test_a_plan_says_a_line_first_and_whitens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []

    def opened(*args: Any, **more: Any) -> Any:
        assert said == ["6 cells; reading the images and measuring an iteration"]
        return load_images(*args, **more)

    monkeypatch.setattr(bench, "load_images", opened)
    monkeypatch.setattr(whitening, "fit_whitening", lambda flat: pytest.fail("images were whitened"))
    path = write_images(tmp_path / "stripes.npz")
    settings = tiny_settings(images={"name": "npz", "preprocessing": "gcn_zca"})
    plan = make_plan(settings, folder=path, workers=1, say=said.append)
    assert plan.hours is not None
    assert plan.memory_mb == pytest.approx(4 * 240 * 400 / 1e6)


def test_whitening_is_said_before_it_is_begun_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*arguments: Any, **more: Any) -> None:
        raise InputError("the images are not there")

    monkeypatch.setattr(study, "open_images", absent)
    settings = tiny_settings(images={"name": "npz", "preprocessing": "gcn_zca"})
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(InputError, match="not there"):
            run_study(settings, tmp_path, folder=tmp_path, on=ONE, say=said.append)
        (tmp_path / "images").mkdir(exist_ok=True)
    (line,) = said
    assert line.startswith("whitening the images, once for all networks")


def test_a_finished_study_trains_nothing_again_and_a_grown_one_only_what_is_new(
    images: Path, whole: tuple[Path, GridReport], tmp_path: Path
):
    finished, first = whole
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert (first.n_new, first.n_kept, first.failed) == (6, 0, ())
    again = run_study(tiny_settings(), tmp_path, folder=images, on=ONE)
    assert (again.n_new, again.n_kept) == (0, 6)
    assert study_table(tmp_path).n_missing == 0
    grown = run_study(tiny_settings(repeats=2), tmp_path, folder=images, on=ONE)
    assert (grown.n_new, grown.n_kept) == (6, 6)
    with pytest.raises(InputError, match="another study"):
        run_study(tiny_settings(base=30), tmp_path, folder=images, on=ONE)
    assert (
        study_table(tmp_path).means == make_table(study_rows(tmp_path)).means
    )  # its settings were not overwritten


def test_a_method_that_was_changed_does_not_mix_with_what_it_was(images: Path, tmp_path: Path):
    for knobs in ({}, {"two_phase": True}):
        run_study(
            tiny_settings(methods={"oversample": knobs}),
            tmp_path,
            folder=images,
            on=ONE,
        )
    table = study_table(tmp_path)
    assert {(row["method"], row["n"]) for row in table.means} == {
        ("oversample", 1),
        ("two_phase_oversample", 1),
    }


def test_table_and_figures_of_a_study_that_is_not_finished_say_so(
    whole: tuple[Path, GridReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:4]))
    assert "2 cells of the study are not finished" in to_markdown(study_table(tmp_path))
    with pytest.raises(SystemExit, match="0"):
        main(["study", "figures", str(tmp_path)])
    assert "2 cells of the study are not finished" in capsys.readouterr().err


def test_random_and_lowest_rare_classes_in_one_study():
    sets = [{"kind": "step", "rho": [4], "mu": [0.5], "minority": rule} for rule in ("random", "lowest")]
    jobs = study_jobs(tiny_settings(distributions=sets, methods={"baseline": {}}))
    assert len({job.key for job in jobs}) == 2


def test_parts_make_the_whole(images: Path, whole: tuple[Path, GridReport], tmp_path: Path):
    for number in (1, 2):
        part = run_study(
            tiny_settings(),
            tmp_path / "parts",
            folder=images,
            on=ONE,
            part=(number, 2),
        )
        assert part.n_new == 3
    assert without_clocks(study_rows(tmp_path / "parts")) == without_clocks(list(whole[1].rows))
    merged = run_study(tiny_settings(), tmp_path / "parts", folder=images, on=ONE)
    assert merged.n_new == 0  # taken over from the parts


def test_a_study_needs_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BRATS_SEG_DATA", raising=False)
    with pytest.raises(UsageError, match=r"images\.folder"):
        run_study(tiny_settings(), tmp_path, folder=None, on=ONE)
    with pytest.raises(InputError, match=r"nothing\.npz"):
        run_study(tiny_settings(), tmp_path, folder=tmp_path / "nothing.npz", on=ONE)
    with pytest.raises(InputError, match="no finished network"):
        study_rows(tmp_path)


def test_a_plan_does_not_count_what_another_study_finished(images: Path, tmp_path: Path):
    settings = tiny_settings(methods={"baseline": {}})
    run_study(settings, tmp_path, folder=images, on=ONE)
    assert make_plan(settings, folder=images, workers=1, store=tmp_path).n_finished == 2
    with pytest.raises(InputError, match="another study: its base is 40, this one's 30"):
        make_plan(tiny_settings(base=30, methods={"baseline": {}}), folder=images, workers=1, store=tmp_path)


def test_a_plan_of_what_is_damaged_or_cannot_be_is_refused(images: Path, tmp_path: Path):
    damaged = tmp_path / "images.npz"
    damaged.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"images\.npz"):
        make_plan(tiny_settings(), folder=damaged, workers=1)
    with pytest.raises(UsageError, match="rho 400 is larger than the class"):
        make_plan(
            tiny_settings(distributions=[{"kind": "step", "rho": [400], "mu": [0.5]}]),
            folder=images,
            workers=1,
        )


def test_labels_with_gaps_and_a_test_set_of_one_class_are_named(images: Path, tmp_path: Path):
    with np.load(images) as archive:
        arrays = dict(archive)
    for changed, said in (
        (
            {"train_labels": arrays["train_labels"] + 1, "test_labels": arrays["test_labels"] + 1},
            "no image of class '0'",
        ),
        ({"test_labels": arrays["test_labels"] * 0}, "all its images have the same class"),
    ):
        np.savez(tmp_path / "odd.npz", **(arrays | changed))
        with pytest.raises(InputError, match=said):
            make_plan(tiny_settings(), folder=tmp_path / "odd.npz", workers=1)
    with pytest.raises(InputError, match=r"odd\.npz: is a file; for an \.npz give --set images\.name=npz"):
        make_plan(tiny_settings(images={"name": "folder"}), folder=tmp_path / "odd.npz", workers=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"name": "vgg"}}, "vgg"),
        ({"validation": {"images": "own"}}, "has no validation images"),
        (
            {"validation": {"held_out": 30, "images": "train", "per_class": 10}},
            "held_out 30 and per_class 10",
        ),
        (
            {"methods": {"logit_adjusted": {}}, "distributions": [{"kind": "given", "counts": [0, 5, 5, 5]}]},
            "contain no 0, but this loss depends on the share of each class",
        ),
        (
            {"distributions": [{"kind": "step", "rho": [4, 50], "mu": [0.5]}]},
            "rho 50 is larger than the class",
        ),
        (
            {"distributions": [{"kind": "step", "rho": [4], "mu": [0.5, 0.99]}]},
            "mu 0.99: of 4 classes 3.96 would be",
        ),
        ({"base": 41}, "needs 41 examples but has 40"),
        ({"decisions": {"costs": [[0, 1], [1, 0]]}}, "4 classes need 4 x 4"),
        ({"validation": {"images": "test", "of": "cat"}}, "validation.of 'cat': is not a class"),
    ],
)
def test_what_the_images_cannot_give_is_said_before_anything_is_trained(
    images: Path, tmp_path: Path, changes: dict[str, Any], said: str
):
    with pytest.raises(UsageError, match=said):
        run_study(tiny_settings(**changes), tmp_path, folder=images, on=ONE)
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(
    images: Path, whole: tuple[Path, GridReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    n_calls, fsync = itertools.count(), os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("rows.jsonl") and next(n_calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("brats_seg.studies.store.os.fsync", full)
        with pytest.raises(
            InputError,
            match=r"rows\.jsonl: cannot be written: No space left .* the 2 finished cells are kept",
        ):
            run_study(tiny_settings(), tmp_path / "full", folder=images, on=ONE)
    assert len(study_rows(tmp_path / "full")) > 0
    again = run_study(tiny_settings(), tmp_path / "full", folder=images, on=ONE)
    assert (again.n_kept, again.n_new) == (2, 4)
    assert without_clocks(list(again.rows)) == without_clocks(list(whole[1].rows))


def test_a_broken_image_is_named_before_training_and_one_that_breaks_later_costs_its_cell_alone(
    tmp_path: Path,
):
    paths = [tmp_path / "images" / name / f"{number}.png" for name in ("cat", "dog") for number in range(5)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (20 + number, 40, 60)).save(path)
    asked: dict[str, Any] = {
        "images": {"name": "folder"},
        "base": 4,
        "methods": {"baseline": {}},
        "network": {"name": "two_class"},
        "training": {"iterations": 1, "batch_size": 8},
        "distributions": [{"kind": "balanced"}],
    }
    whole, first = paths[0].read_bytes(), paths[0]
    first.write_bytes(whole[:60])
    with pytest.raises(InputError, match=r"cat/0\.png: not a whole JPEG or PNG"):
        run_study(
            tiny_settings(**asked),
            tmp_path / "out",
            folder=tmp_path / "images",
            on=ONE,
        )
    first.write_bytes(whole)
    run_study(
        tiny_settings(**asked),
        tmp_path / "out",
        folder=tmp_path / "images",
        on=ONE,
    )
    first.write_bytes(whole[:60] + bytes(len(whole) - 60))
    grown = run_study(
        tiny_settings(**asked, repeats=2),
        tmp_path / "out",
        folder=tmp_path / "images",
        on=ONE,
    )
    assert (grown.n_kept, grown.n_new, len(grown.failed)) == (1, 0, 1)
    assert [reason.partition(": ")[0] for _, reason in grown.failed] == [str(first)]


IN_THREADS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
"""A forked study only starts its workers and writes their rows."""


@IN_THREADS
def test_a_study_killed_after_its_worker_has_every_row_once(images: Path, tmp_path: Path):
    check_kills(images, tmp_path, n_kills=1, iterations=30, repeats=1)


@IN_THREADS
@pytest.mark.campaign
def test_killed_ten_times_a_study_has_every_row_once(images: Path, tmp_path: Path):
    check_kills(images, tmp_path, n_kills=10, iterations=300, repeats=2)


def check_kills(images: Path, tmp_path: Path, *, n_kills: int, iterations: int, repeats: int) -> None:
    """kill -9 a worker, then the whole study, at random moments; then let it end."""
    settings = tiny_settings(training={"iterations": iterations, "batch_size": 16}, repeats=repeats)
    whole = run_study(settings, tmp_path / "whole", folder=images, on=ONE)
    two = GridWorkers(n=2, device="cpu")
    dice = random.Random(n_kills)
    for number in range(n_kills):
        # forked: the package is imported here already
        study = multiprocessing.get_context("fork").Process(
            target=run_study, args=(settings, tmp_path / "killed"), kwargs={"folder": images, "on": two}
        )
        study.start()
        workers = wait_for_workers(study)
        wait_for_rows(study, tmp_path / "killed" / "rows.jsonl")
        time.sleep(dice.uniform(0, 3 if n_kills > 2 else 0.5))
        if workers and number % 2 == 0:
            os.kill(dice.choice(workers), signal.SIGKILL)
            time.sleep(dice.uniform(0, 1))
        study.kill()
        study.join()
        time.sleep(0.2)  # until its lock is let go
    run_study(settings, tmp_path / "killed", folder=images, on=ONE)
    n_lines = (tmp_path / "killed" / "rows.jsonl").read_text().count("\n")
    assert n_lines == len(study_jobs(settings))  # none twice
    killed = study_rows(tmp_path / "killed")
    assert without_clocks(killed) == without_clocks(list(whole.rows))
    assert study_table(tmp_path / "killed") == make_table(list(whole.rows))


def wait_for_rows(study: ForkProcess, rows: Path) -> None:
    """Until a row is written that was not there before, or the study ends."""
    n_before = rows.read_text().count("\n") if rows.exists() else 0
    while study.is_alive() and (not rows.exists() or rows.read_text().count("\n") == n_before):
        time.sleep(0.05)


def wait_for_workers(study: ForkProcess) -> list[int]:
    """Processes that the study has spawned, once there are some."""
    tasks = Path(f"/proc/{study.pid}/task/{study.pid}/children")
    for _ in range(200):
        children = [int(pid) for pid in tasks.read_text().split()] if tasks.exists() else []
        named = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if named or not study.is_alive():
            return named
        time.sleep(0.05)
    return []
